"""The decoder of Glow-TTS in Coqui TTS, and NeMo's WaveGlow: their own files, without the packages around them.

    pip download --no-deps coqui-tts nemo_toolkit==1.20.0
    unzip -d coqui coqui_tts-*.whl; unzip -d nemo nemo_toolkit-*.whl

with the variables COQUI and NEMO naming these folders.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import os
import sys
import types
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

PLACES = {"TTS": "COQUI", "nemo": "NEMO"}
READ = ("TTS.tts.layers.", "nemo.collections.tts.modules.")  # files that are run


class _Absent(types.ModuleType):
    """A module that is left out, any name of which is a class that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **options: None})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Files of the packages that are read; nothing of the others, which import much else."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        first, *rest = fullname.split(".")
        if first not in PLACES:
            return None
        file = Path(_place(first), first, *rest).with_suffix(".py")
        if fullname.startswith(READ) and file.exists():
            return importlib.util.spec_from_file_location(fullname, file)
        return importlib.util.spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def _place(package: str) -> str:
    place = os.environ.get(PLACES[package])
    if not place or not Path(place, package).is_dir():
        raise SystemExit(f"set {PLACES[package]} to where the files of {package} are; see benchmarks/speech_peers.py")
    return place


def _module(name: str) -> Any:
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    return importlib.import_module(name)


def coqui_decoder(mels: int, sizes: dict[str, int]) -> Any:
    """Coqui's decoder of spectrograms, (n, mels, T) and a mask (n, 1, T)."""
    decoder = _module("TTS.tts.layers.glow_tts.decoder").Decoder
    return decoder(
        mels, sizes["hidden"], kernel_size=5, dilation_rate=1, num_flow_blocks=sizes["blocks"],
        num_coupling_layers=sizes["layers"],
    )  # fmt: skip


def nemo_waveglow(mels: int, sizes: dict[str, int]) -> Any:
    """NeMo's WaveGlow, for spectrograms (n, mels, F) of 256 samples a frame."""
    core, helpers = _module("nemo.core.classes"), _module("nemo.collections.tts.parts.utils.helpers")
    core.NeuralModule, core.Exportable, core.typecheck = nn.Module, object, lambda: lambda function: function
    core.adapter_mixins = types.SimpleNamespace(AdapterModuleMixin=object)
    source = Path(_place("nemo"), "nemo/collections/tts/parts/utils/helpers.py").read_text()
    for part in ast.parse(source).body:  # three small ones of a file that imports much else
        if getattr(part, "name", None) in ("OperationMode", "remove", "split_view"):
            exec(compile(ast.Module([part], []), "helpers.py", "exec"), {"torch": torch, "Enum": Enum}, vars(helpers))
    model = _module("nemo.collections.tts.modules.waveglow").WaveGlowModule
    return model(
        n_mel_channels=mels, n_flows=sizes["flows"], n_group=sizes["group"], n_early_every=4, n_early_size=2,
        n_wn_channels=sizes["hidden"], n_wn_layers=sizes["layers"], wn_kernel_size=3,
    )  # fmt: skip
