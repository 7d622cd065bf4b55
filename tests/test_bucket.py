import base64
import contextlib
import dataclasses
import datetime
import hashlib
import http.server
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import jax
import numpy as np
import pytest

from tfx import bucket, checkpoint, lock, metrics, sharding, workdir
from tfx import train as training
from tfx.main import main


class Cloud(http.server.ThreadingHTTPServer):
    """Google Cloud Storage, on this machine: one bucket, `bucket`, and as much of the JSON API as
    its readers and writers here use, preconditions and generations included.

    Attributes:
      objects: {name: (content, generation)}.
      forbidden: whether it refuses to be written to.
      times: when a generation was written, by a clock that is `ahead` of ours.
    """

    daemon_threads = True
    handle_error = lambda *_: None  # whoever asked has had enough

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.objects, self.forbidden, self.lock = {}, False, threading.Lock()
        self.generations, self.times, self.ahead = itertools.count(1), {}, 0.0
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def log_message(self, *_):
        pass

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        found = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(/o)?/?(.*)", path)
        name, query = urllib.parse.unquote(found[3]), dict(urllib.parse.parse_qsl(query))
        with self.server.lock:
            if found[1] != "bucket":
                status, headers, content = 404, {}, {"error": {"message": "no such bucket"}}
            elif not found[2]:
                status, headers, content = 200, {}, {"name": "bucket"}
            elif self.command in ("POST", "PUT"):
                status, headers, content = self.write(query, body)
            elif not name:
                status, headers, content = self.list(query)
            else:
                status, headers, content = self.read(name, query)
        if isinstance(content, dict):
            headers["Content-Type"] = "application/json"
            content = json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers | {"Content-Length": len(content)}).items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def about(self, name):
        content, generation = self.server.objects[name]
        at = datetime.datetime.fromtimestamp(self.server.times.get(generation, 0), datetime.UTC)
        sums = {"md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode()}
        known = {"name": name, "bucket": "bucket", "generation": f"{generation}"}
        known["updated"] = f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"
        return known | {"size": f"{len(content)}"} | sums

    def refused(self, name, query):
        now = f"{self.server.objects[name][1] if name in self.server.objects else 0}"
        if self.command != "GET" and self.server.forbidden:
            return 403, {}, {"error": {"message": "not yours"}}
        if query.get("ifGenerationMatch", now) != now:
            return 412, {}, {"error": {"message": "changed"}}
        if query.get("ifGenerationNotMatch") == now:
            return 304, {}, b""
        if name not in self.server.objects and self.command in ("GET", "DELETE"):
            return 404, {}, {"error": {"message": f"No such object: {name}"}}

    def write(self, query, body):
        if query["uploadType"] == "resumable":  # all of it in the next request
            where = urllib.parse.urlencode({"uploadType": "media", "name": query["name"]})
            return 200, {"Location": f"{self.server.url}/upload/storage/v1/b/bucket/o?{where}"}, {}
        if query["uploadType"] == "multipart":  # JSON, then the content
            between = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1]
            parts = body.split(f"--{between}".encode())[1:3]
            about, body = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts)
            query |= json.loads(about)
            body = body.removesuffix(b"\n").removesuffix(b"\r")
        if not (refused := self.refused(name := query["name"], query)):
            generation = next(self.server.generations)
            self.server.objects[name] = body, generation
            self.server.times[generation] = time.time() + self.server.ahead
        return refused or (200, {}, self.about(name))

    def read(self, name, query):
        if refused := self.refused(name, query):
            return refused
        if self.command == "DELETE":
            del self.server.objects[name]
            return 204, {}, b""
        if query.get("alt") != "media":
            return 200, {}, self.about(name)
        content, generation = self.server.objects[name]
        headers, size = {"x-goog-generation": generation}, len(content)
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = wanted.groups()
            begin = int(first) if first else max(size - int(last), 0)
            end = min(int(last) + 1, size) if first and last else size
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
            return 206, headers, content[begin:end]
        return 200, headers, content

    def list(self, query):
        prefix, cut = query.get("prefix", ""), query.get("delimiter")
        items, below = [], {}
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or not (
                query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff")
            ):
                continue
            head, mark, _ = name[len(prefix) :].partition(cut or "\0")
            if mark:
                below[prefix + head + mark] = True
            else:
                items.append(self.about(name))
        most = int(query.get("maxResults") or len(items))
        return 200, {}, {"items": items[:most], "prefixes": [*below]}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """What answers for Google in these tests; its bucket is gs://bucket."""
    pytest.importorskip("gcsfs")
    server = Cloud()
    variables = {
        "STORAGE_EMULATOR_HOST": server.url,
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        **{name: f"{tmp_path_factory.mktemp(name)}" for name in ("XDG_CACHE_HOME", "TMPDIR")},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", variables["TMPDIR"])
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirror(cloud, request):
    """A mirror of an own workdir, which holds the files a, b.json and scores.jsonl."""
    url = f"gs://bucket/{request.node.name}"
    for name in ("a", "b.json", "scores.jsonl"):
        (bucket.place(url) / name).write_text("old")
    return bucket.local(url)


def other(mirror) -> Path:
    return bucket.local(f"{bucket.home(mirror)}")


def digest(directory, config):
    """The state in the last checkpoint, as bytes."""
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh), checkpoint.Checkpoints(directory) as saved:
        parts = training.put_together(config, bucket.local(directory), mesh, lambda line: None)
        state, _ = saved.restore(parts.like)
    leaves = jax.tree.leaves(state.replace(rng=jax.random.key_data(state.rng)))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def texts(directory, *names):
    return [(bucket.place(directory) / name).read_text() for name in names]


# ----------------------------------------------------------------- places


def test_a_directory_is_itself(tmp_path, monkeypatch):
    assert bucket.local(tmp_path) == bucket.home(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert bucket.home("run") == tmp_path / "run"
    (tmp_path / "file").write_text("")
    bucket.pull(tmp_path)
    bucket.publish(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("url", ["s3://bucket/run", "http://a/b", "gs://", "gs:///run"])
def test_other_urls_are_refused(url, capsys):
    assert main(["config", f"--workdir={url}"]) == 2
    assert capsys.readouterr().err == (
        f"error: {url}: want a directory or gs://BUCKET/NAME; no other URL will do\n"
    )


def test_without_the_packages_a_line_says_how_to_install_them(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    assert main(["eval", "--workdir=gs://nowhere/run"]) == 2
    assert 'pip install "tfx-research[gcs]"' in capsys.readouterr().err


def test_a_bucket_that_does_not_open_is_told_at_once(cloud, monkeypatch, capsys):
    def error(name):
        began = time.time()
        for verb in ("train --config=quickstart:tiny", "eval", "translate", "list", "config"):
            assert main([*verb.split(), f"--workdir=gs://{name}/run"]) == 2
            said = capsys.readouterr().err
            assert re.fullmatch(rf"error: gs://{name} does not open: [^\n]+\n", said)
        assert time.time() - began < 10
        return said

    assert "404" in error("nobodys")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    assert "Connection refused" in error("unheard")


# ---------------------------------------------------------------- mirrors


def test_a_mirror_is_private_and_brings_files_but_no_folders(mirror):
    (bucket.place(bucket.home(mirror)) / "launch" / "code.tar.gz").write_text("")
    again = other(mirror)
    assert again != mirror and again.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in again.iterdir() if path.name != "data") == [
        bucket.MARK,
        "a",
        "b.json",
        "scores.jsonl",
    ]


def test_what_changed_is_published_json_last(mirror, monkeypatch):
    import fsspec

    taken, system = [], fsspec.filesystem("gs")
    pipe = system.pipe_file
    keep = lambda path, data: (taken.append(Path(path).name), pipe(path, data))
    monkeypatch.setattr(system, "pipe_file", keep)
    for name in ("b.json", "a", "new"):
        (mirror / name).write_text("new")
    (mirror / "translations").mkdir()
    (mirror / "translations" / "test.txt").write_text("new")
    bucket.publish(mirror)
    assert sorted(taken) == ["a", "b.json", "new", "test.txt"] and taken[-1] == "b.json"
    bucket.publish(mirror)
    assert len(taken) == 4
    with (mirror / "a").open("a") as file:
        file.write("er")
    bucket.publish(mirror)
    assert taken[4:] == ["a"]
    assert texts(bucket.home(mirror), "a", "translations/test.txt") == ["newer", "new"]


def test_nobody_takes_back_what_another_wrote(mirror):
    """Training goes on while an evaluation adds its score."""
    evaluation = other(mirror)
    (evaluation / "scores.jsonl").write_text("new")
    (mirror / "a").write_text("new")
    bucket.publish(evaluation)
    bucket.publish(mirror)
    assert texts(bucket.home(mirror), "a", "scores.jsonl") == ["new", "new"]
    (mirror / "a").write_text("newer")
    bucket.pull(mirror)
    assert (mirror / "a").read_text() == "newer" and (mirror / "scores.jsonl").read_text() == "new"


def test_what_the_bucket_does_not_take_stays_here(cloud, monkeypatch):
    program = """
import os, sys
from tfx import bucket
kept, lost = bucket.local("gs://bucket/refused"), bucket.local("gs://bucket/refused")
(kept / "a").write_text("new")
print(kept, lost)
bucket.publish(kept)
"""
    monkeypatch.setattr(cloud, "forbidden", True)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    kept, lost = map(Path, ran.stdout.split())
    assert (kept / "a").read_text() == "new" and not lost.exists()
    assert "ValueError: cannot write to gs://bucket/refused: Forbidden" in ran.stderr


def test_who_may_not_write_is_told_before_anything_is_built(cloud, monkeypatch, toy, capsys):
    monkeypatch.setattr(cloud, "forbidden", True)
    words = ["train", "--config=quickstart:tiny", "--workdir=gs://bucket/theirs"]
    assert main(words) == 2
    said = capsys.readouterr()
    assert re.fullmatch("error: cannot write to gs://bucket/theirs: [^\n]+\n", said.err)
    assert "not yours" in said.err and not said.out


# ------------------------------------------------------------------ locks


def left(cloud, url, age, **changes):
    """A lock of another machine, whose last sign of life is so old."""
    holder = lock._here() | {"verb": "train", "token": "theirs", "host": "far", "machine": "other"}
    (bucket.place(url) / lock.NAME).write_text(json.dumps(holder | changes))
    _, generation = cloud.objects[f"{url}/{lock.NAME}".removeprefix("gs://bucket/")]
    cloud.times[generation] -= age


def test_a_bucket_has_one_writer(cloud, monkeypatch, caplog):
    url, ahead = "gs://bucket/locked", 3 * lock.LEASE
    monkeypatch.setattr(cloud, "ahead", ahead)  # no clock of a machine counts
    with lock.Lock(url, "train") as held:
        held.acquire()
        with pytest.raises(lock.Held, match=rf"locked: tfx train \(process {os.getpid()} on host"):
            lock.check(url)
        assert [path.name for path in bucket.local(url).iterdir()].count(lock.NAME) == 0
    assert not [name for name in cloud.objects if name.startswith("locked/")]
    left(cloud, url, 1)
    with pytest.raises(lock.Held, match="on host far"):
        lock.Lock(url, "train").acquire()
    left(cloud, url, lock.LEASE + 1)
    with lock.Lock(url, "train") as held:
        held.acquire()
        assert "taking over from tfx train" in caplog.text
        left(cloud, url, 0)
        with pytest.raises(lock.Held, match="has taken over"):
            held.confirm()
    assert json.loads(cloud.objects[f"locked/{lock.NAME}"][0])["token"] == "theirs"


def test_of_many_that_want_a_lock_in_a_bucket_one_gets_it(cloud):
    url = "gs://bucket/raced"
    left(cloud, url, lock.LEASE + 1)
    locks, won = [lock.Lock(url, "train") for _ in range(6)], []

    def race(each):
        with contextlib.suppress(lock.Held):
            each.acquire()
            won.append(each)

    threads = [threading.Thread(target=race, args=[each]) for each in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()


def test_signs_of_life_reach_the_bucket(cloud, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.Lock("gs://bucket/alive", "train") as held:
        held.acquire()
        _, first = cloud.objects["alive/.lock"]
        while cloud.objects["alive/.lock"][1] < first + 3:
            time.sleep(0.01)


# ------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def run(cloud, toy_config, tmp_path_factory):
    """A run of four steps in a bucket, stopped after two and gone on elsewhere; and its twin,
    which lies in a directory and never stopped."""
    url, straight = "gs://bucket/run", tmp_path_factory.mktemp("straight")
    make = lambda steps: toy_config({"train.steps": steps, "checkpoint.every": 2, "eval.every": 2})
    training.train(make(2), url)
    left = bucket.place(url) / "metrics.jsonl"
    left.write_text(left.read_text() + '{"step": 3, "split": "train", "loss": 0}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", f"{tmp_path_factory.mktemp('elsewhere')}")
        training.train(make(4), url)
    training.train(make(4), straight)
    return url, straight, make(4)


def test_a_run_that_goes_on_elsewhere_is_the_run_that_never_stopped(run):
    url, straight, made = run
    assert digest(url, made) == digest(straight, made)
    kinds = ("step", "split", "loss", "nll", "grad_norm", "perplexity")
    rows = [
        [{kind: row.get(kind) for kind in kinds} for row in metrics.read(where) if row["step"] > 2]
        for where in (url, straight)
    ]
    assert rows[0] == rows[1] and rows[0]
    assert texts(url, "tokenizer.json") == texts(straight, "tokenizer.json")
    assert len(texts(url, "starts.jsonl")[0].splitlines()) == 2
    assert workdir.progress(url)[0] == 4 and workdir.read_config(url) == made
    assert len(list(bucket.place(url).glob("tensorboard/*"))) == 2


def test_another_run_is_refused_in_a_bucket_too(run, toy_config):
    url, _, _ = run
    with pytest.raises(ValueError, match=rf"{url}: holds another run: seed was 0, is 3"):
        workdir.check(url, toy_config({"seed": 3}))


def test_all_that_reads_a_run_reads_it_from_a_bucket(run, toy, tmp_path, capsys):
    url, straight, _ = run
    found = []
    for where in (url, straight):
        words, out = f"--workdir={where}", tmp_path / "out"
        assert main(["eval", words]) == 0
        assert main(["translate", words, f"--input={toy}/valid.a", f"--output={out}"]) == 0
        capsys.readouterr()
        assert main(["config", words]) == main(["config", words, f"--diff={where}"]) == 0
        shown = capsys.readouterr().out.replace(f"{where}", "")
        scores = re.sub('"(seconds|revision)": [^,}]*', "", *texts(where, "scores.jsonl"))
        found.append([shown, scores, out.read_text(), *texts(where, "translations/test.4.txt")])
    assert found[0] == found[1]
    assert main(["list", f"--workdir={bucket.place(url).parent}"]) == 0
    assert re.search(rf"^{url}  step 4 of 4  BLEU ", capsys.readouterr().out, re.M)
    averaged = f"{url}-averaged"
    assert main(["average", f"--workdir={url}", "--last=1", f"--out={averaged}"]) == 0
    with checkpoint.Checkpoints(averaged) as saved:
        assert saved.steps == [4]
    assert texts(averaged, "tokenizer.json") == texts(url, "tokenizer.json")
    assert main(["average", f"--workdir={url}", "--last=1", f"--out={averaged}"]) == 2


def test_a_run_may_start_from_weights_in_a_bucket(run, toy_config, tmp_path):
    url, _, _ = run
    training.train(toy_config({"train.steps": 1, "init_from": url}), tmp_path)


@pytest.fixture
def start(cloud):
    """A function: start a command in a process of its own."""
    root, started = Path(__file__).parent.parent, []
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": f"{root}"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)

    def make(*words, cwd=root):
        command = [sys.executable, "-m", "tfx.main", *words]
        started.append(subprocess.Popen(command, cwd=cwd, **pipes))
        return started[-1]

    yield make
    for process in started:
        process.kill()
        process.communicate()


def overrides(**values):
    changed = {"data.source": "files", "tokenizer.vocab": 40, "model.dropout": 0.2}
    changed |= {"data.valid": values["train"], "data.test": values["train"]}
    changed |= {"optim.name": "sgd", "optim.lr": 0.1, "optim.schedule": "constant"}
    changed |= {"eval.every": 0, "eval.bleu_every": 0, "train.watchdog": 120}
    changed |= {"data.train": values["train"], "checkpoint.every": 5, "decode.extra": 4}
    return [f"--config.{key}={value}" for key, value in changed.items()]


def test_a_save_under_way_is_no_checkpoint_yet_and_is_let_be(run):
    url, _, made = run
    half = bucket.place(url) / "checkpoints" / "6" / "meta" / "half"
    half.write_text("written")
    assert workdir.progress(url)[0] == 4
    with checkpoint.Checkpoints(url) as saved:
        assert saved.steps[-1] == 4 and half.exists()
    longer = dataclasses.replace(made.train, steps=made.train.steps + 1)
    training.train(dataclasses.replace(made, train=longer), url)
    began = time.time()
    while half.exists():
        assert time.time() < began + 10


@pytest.mark.slow
def test_two_processes_with_a_mirror_each_stop_and_go_on(start, toy, tmp_path):
    url, straight = "gs://bucket/two", tmp_path / "straight"
    train = ["train", "--config=quickstart:tiny", *overrides(train=f"{toy}/train.a,{toy}/train.b")]
    two = ["launch", "--processes=2", "--", "tfx"]
    process = start(*two, *train, f"--workdir={url}", "--config.train.steps=100000")
    while not workdir.progress(url)[0] and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    stopped, _ = workdir.progress(url)
    assert f"stopped by SIGTERM after saving step {stopped}" in said
    assert max(row["step"] for row in metrics.read(url)) == stopped
    train += [f"--config.train.steps={stopped + 40}"]
    for words in (
        [*two, *train, f"--workdir={url}"],
        [*two, "eval", f"--workdir={url}"],
        [*train, f"--workdir={straight}"],
    ):
        process = start(*words)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    rows = [metrics.read(where, "train") for where in (url, straight)]
    np.testing.assert_allclose(*([row["loss"] for row in each] for each in rows), rtol=1e-5)
    assert len(texts(url, "scores.jsonl")[0].splitlines()) == 4


@pytest.mark.slow
def test_processes_with_other_text_refuse_to_train(start, toy, tmp_path):
    """Each has its own mirror, and would not see what the others encode."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    words = ["train", "--config=quickstart:tiny", "--workdir=gs://bucket/apart", where]
    words += [*overrides(train="train.a,train.b"), "--num_processes=2"]
    processes = []
    for number in (0, 1):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for side in ("a", "b"):
            lines = (toy / f"train.{side}").read_text().splitlines()
            (folder / f"train.{side}").write_text("\n".join(lines[: 120 - number]))
        processes.append(start(*words, f"--process_id={number}", cwd=folder))
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 2, said
        assert re.search("data is .+ on process 0 and .+ on process 1; the text has to be", said)
