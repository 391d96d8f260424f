"""Safetensors files: names and spans of what is whole, one line about what is not, and one module that opens them."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import rlhf
from rlhf.experiment.tensor_files import header_and_spans, open_tensors, tensor_names


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"head": torch.tensor([1.0, 2.0]), "body": torch.arange(6, dtype=torch.bfloat16)}, path, {"format": "pt"})
    return path


def test_names_tensors_and_spans(file):
    assert tensor_names(file) == {"head", "body"}
    assert open_tensors(file).get_tensor("head").tolist() == [1.0, 2.0]
    header, *tensors = header_and_spans(file)
    assert header[0] == 0 and sorted(tensors)[0][0] == header[1] and sorted(tensors)[-1][1] == file.stat().st_size
    assert sorted(end - begin for begin, end in tensors) == [8, 12]
    assert torch.frombuffer(bytearray(file.read_bytes()[slice(*tensors[0])]), dtype=torch.float32).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_file_that_is_cut_off_is_named(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut off, or no safetensors file"):
        tensor_names(file)


def test_safetensors_files_are_opened_in_one_module():
    package = Path(rlhf.__file__).parent
    opening = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package) != Path("experiment/tensor_files.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.alias)
        and {getattr(node, "id", ""), getattr(node, "name", "")} & {"safe_open", "load_file"}
    ]
    assert opening == []
