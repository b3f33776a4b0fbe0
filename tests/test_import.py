"""`import diffeo` stays close to `import torch`, and shape annotations hold."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    heavy = ["pandas", "sklearn", "scipy", "matplotlib", "lightning_fabric", "pyarrow", "typer", "rich", "pyro"]
    heavy += ["torch._dynamo", "torch._inductor", "sympy"]
    out = run(f"import sys, diffeo; print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


def test_what_loads_later_is_there():
    out = run("import diffeo; print(diffeo.fit.__name__, diffeo.testing.__name__, 'fit' in dir(diffeo))")
    assert out.split() == ["fit", "diffeo.testing", "True"]
    code = "import diffeo\ntry:\n    diffeo.nothing\nexcept AttributeError as error:\n    print(error)"
    assert "no attribute 'nothing'" in run(code)


def test_nothing_of_torch_is_changed():
    code = (
        "import torch.distributions as d; a = (d.Distribution.set_default_validate_args, d.Distribution._validate_args,"
        " dict(d.kl._KL_REGISTRY), d.Distribution.__init__); import diffeo; "
        "b = (d.Distribution.set_default_validate_args, d.Distribution._validate_args, dict(d.kl._KL_REGISTRY),"
        " d.Distribution.__init__); print(a == b)"
    )
    assert run(code).strip() == "True"


def test_no_function_hides_its_module():
    code = (
        "import pkgutil, importlib, sys, diffeo\n"
        "for m in pkgutil.walk_packages(diffeo.__path__, 'diffeo.'):\n"
        "    '__main__' in m.name or importlib.import_module(m.name)\n"
        "split = [(name, *name.rpartition('.')) for name in sys.modules if name.startswith('diffeo.')]\n"
        "print([n for n, up, _, leaf in split if getattr(sys.modules[up], leaf, None) is not sys.modules[n]])\n"
        "import diffeo.targets"
    )
    assert run(code).strip() == "['diffeo.recipes']"  # which lists them, and is a public name
