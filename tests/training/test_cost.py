"""Cost of a training: the hardware that it names."""

import torch

from recpipe.training import cost


def test_hardware_of_a_cpu_is_its_name_and_the_threads_of_torch(tmp_path, monkeypatch):
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t: fpu\nmodel name\t: AMD EPYC 9B14\n")
    monkeypatch.setattr(cost, "PROCESSORS", listing)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert cost.hardware("cpu") == "AMD EPYC 9B14, 2 threads"


def test_a_system_without_a_list_of_processors_has_a_name_too(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "PROCESSORS", tmp_path / "missing")
    assert cost.processor()


def test_hardware_of_a_gpu_is_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert cost.hardware("cuda") == "NVIDIA H200"
