from safetensors.numpy import load_file


def read(folder):
    return load_file(f"{folder}/model.safetensors")
