"""The law of the house, as far as a machine can read it."""

import ast
import functools
import graphlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("tfx", "configs", "experiments", "scripts", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
    if path.is_relative_to(ROOT / "tfx")
}
# Imports point down. "" is `tfx` itself: the version, and the way in from a notebook.
LAYERS = [
    [
        *("nn", "decode", "choose", "sharding", "metrics", "bucket", "data"),
        *("integrity", "lock", "records", "terminal"),
    ],
    ["models", "objectives"],
    [
        *("config", "schema", "cli", "workdir", "assemble", "adopt", "scores", "start", "setup"),
        *("checkpoint", "ensemble", "pretrained", "restore", "state"),
        *("optim", "hosts", "flops"),
    ],
    ["train", "validate", "evaluate", "translate", "generate", "predict"],
    ["lab"],
    ["main", ""],
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
LONG_FUNCTIONS = {"tfx.train._loop": 100, "tfx.decode.beam_search": 100}
ONLY_IN = {  # package: the modules that may import it
    "absl": {"tfx.cli", "tfx.config"},
    "ml_collections": {"tfx.config"},
    "tensorflow_datasets": {"tfx.data.tfds"},
    **dict.fromkeys(("tensorflow", "torch", "clu"), frozenset()),
    **dict.fromkeys(("jax", "jaxlib", "flax", "optax", "orbax"), frozenset(MODULES)),
}
OF_THE_WHOLE = {
    "conventions",
    "configs",
    "journey",
    "mesh_matrix",
    "objectives_train",
    "readme",
    "two_hosts",
}  # tests that mirror no file


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(path, *kinds):
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


@functools.cache
def imports(path):
    """Everything that a file imports anywhere, lazily too; of tfx its modules."""
    found = {alias.name for node in nodes(path, ast.Import) for alias in node.names}
    for node in nodes(path, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        found |= {name if name in MODULES else node.module for name in names}
    return frozenset(found)


def graph():
    """Who imports whom. That all import `tfx` itself, for it is their package, says nothing."""
    inside = MODULES.keys() - {"tfx"}
    return {module: imports(path) & inside for module, path in MODULES.items()}


def part(module):
    """nn of tfx.nn.block; empty for tfx itself."""
    return module.partition(".")[2].partition(".")[0]


def longest_chain(below):
    """Of imports, as what imports what imports what; raises where there is a cycle."""
    chains = {}
    for node in graphlib.TopologicalSorter(below).static_order():
        chains[node] = (node, *max((chains[n] for n in below.get(node, ())), key=len, default=()))
    return max(chains.values(), key=len)


def test_every_file_compiles():
    for path in FILES:
        compile(path.read_bytes(), str(path), "exec")


def test_imports_have_no_cycle_and_no_long_chain():
    """At most 8 imports in a row, where all of a drawer is one; and as many inside a drawer."""
    longest_chain(graph())
    parts, drawers = {part(module): set() for module in MODULES}, {}
    for module, others in graph().items():
        here = part(module)
        parts[here] |= {part(other) for other in others} - {here}
        drawers.setdefault(here, {})[module] = {n for n in others if part(n) == here}
    for below in (parts, *drawers.values()):
        chain = longest_chain(below)
        most = 8 + ("lab" in chain)  # which stands around the spine
        assert len(chain) - 1 <= most, " -> ".join(chain)


def test_imports_point_down():
    assert not {part(module) for module in MODULES} - LAYER.keys(), "a part is in no layer"
    for module, others in graph().items():
        for other in others:
            here, there = part(module), part(other)
            assert LAYER[there] <= LAYER[here], f"{module} imports {other}, which stands above it"
            strangers = here == "data" != there or (here, there) == ("objectives", "models")
            assert not strangers, f"{module} must know nothing of {other}"


def test_packages_are_imported_where_they_belong():
    for module, path in MODULES.items():
        for package in {name.partition(".")[0] for name in imports(path)} & ONLY_IN.keys():
            numpy_only = part(module) == "data" and module not in ONLY_IN["tensorflow_datasets"]
            allowed = module in ONLY_IN[package] and not numpy_only
            assert allowed, f"{module} must not import {package}"


def test_files_functions_and_modules_stay_small():
    for module, path in MODULES.items():
        sizes = {(module, 500): len(path.read_text(encoding="utf-8").splitlines())}
        for node in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef):
            name = f"{module}.{node.name}"
            sizes[name, LONG_FUNCTIONS.get(name, 60)] = node.end_lineno - node.lineno + 1
        for node in nodes(path, ast.ClassDef):
            if "nn.Module" in map(ast.unparse, node.bases):
                fields = sum(isinstance(field, ast.AnnAssign) for field in node.body)
                sizes[f"fields of {module}.{node.name}", 10] = fields
        for (what, most), size in sizes.items():
            assert size <= most, f"{what}: {size}, and at most {most}"


def disagreements(source):
    """Names whose axis suffix is not their subscript in an einsum: q_BHTK used as "BTHK"."""
    parsed, results, found = ast.parse(source), {}, []
    for node in (n for n in ast.walk(parsed) if isinstance(n, ast.Assign)):
        sides = [getattr(side, "elts", [side]) for side in (node.value, node.targets[0])]
        results |= zip(*sides, strict=False)
    for call in (n for n in ast.walk(parsed) if isinstance(n, ast.Call)):
        spec = call.args[0] if call.args else None
        if not (ast.unparse(call.func).endswith("einsum") and isinstance(spec, ast.Constant)):
            continue
        operands, _, result = spec.value.replace(" ", "").partition("->")
        pairs = [*zip(operands.split(","), call.args[1:], strict=False)]
        pairs += [(result, results[call])] if call in results else []
        for subscript, node in pairs:
            suffix = re.search(r"_(1?[A-Z][A-Z0-9]*)$", ast.unparse(node))
            if suffix and suffix[1] != subscript:
                found.append(f"line {call.lineno}: {ast.unparse(node)} is used as {subscript}")
    return found


def test_axis_suffixes_agree_with_einsum_strings():
    good = 'scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, self.k_BSHK)'
    assert not disagreements(good)
    for bad in ("BHTS = ", ", q_BTHK", "k_BSHK)"):
        assert len(disagreements(good.replace(bad, bad.replace("T", "W").replace("S", "Z")))) == 1
    for path in FILES:
        assert not disagreements(path.read_text(encoding="utf-8")), path


def test_names_say_what_things_are():
    empty = re.compile(r"(^|_)(utils?|helpers?|lib|misc)($|_)|^Base[A-Z]|Factory|Manager")
    for path in FILES:
        names = [path.stem, *(n.name for n in nodes(path, ast.FunctionDef, ast.ClassDef))]
        assert not [name for name in names if empty.search(name)], path


def test_nothing_is_left_undone_or_done_the_old_way():
    for path in MODULES.values():
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8")), path
        used = {
            getattr(n, "attr", getattr(n, "id", "")) for n in nodes(path, ast.Attribute, ast.Name)
        }
        assert "pmap" not in used, path


def test_tests_mirror_what_they_test():
    for path in FILES:
        if path.stem.startswith("test_") and path.stem[5:] not in OF_THE_WHOLE:
            tested = path.relative_to(ROOT / "tests").with_name(path.name[5:])
            mirrored = any((ROOT / folder / tested).exists() for folder in ("tfx", "scripts"))
            assert mirrored, f"{path} tests no file of that name"
