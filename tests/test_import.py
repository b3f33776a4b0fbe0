"""`import diffeo` stays close to `import torch`, and leans on what of it is private in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

import diffeo


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    heavy = ["pandas", "sklearn", "scipy", "matplotlib", "lightning_fabric", "pyarrow", "typer", "rich", "pyro"]
    heavy += ["torch._dynamo", "torch._inductor", "sympy"]
    out = run(f"import sys, diffeo; diffeo.Flow; print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"
    assert run("import sys, diffeo; print('torch' in sys.modules)").strip() == "False"


def test_what_loads_later_is_there():
    out = run("import diffeo; print(diffeo.fit.__name__, diffeo.testing.__name__, 'fit' in dir(diffeo))")
    assert out.split() == ["fit", "diffeo.testing", "True"]
    code = "import diffeo\ntry:\n    diffeo.nothing\nexcept AttributeError as error:\n    print(error)"
    assert "no attribute 'nothing'" in run(code)


def test_nothing_of_torch_is_changed():
    code = (
        "import torch.distributions as d; a = (d.Distribution.set_default_validate_args, d.Distribution._validate_args,"
        " dict(d.kl._KL_REGISTRY), d.Distribution.__init__); import diffeo; diffeo.Flow; "
        "b = (d.Distribution.set_default_validate_args, d.Distribution._validate_args, dict(d.kl._KL_REGISTRY),"
        " d.Distribution.__init__); print(a == b)"
    )
    assert run(code).strip() == "True"


# what PyTorch's own subclasses of modules and distributions override and call
EXTENDED = {"_apply", "_validate_args", "_validate_sample"}


def test_private_names_of_torch_are_in_one_file():
    """Those of its modules, and those that its tensors, modules, optimisers, datasets and distributions have."""
    owners = (torch.Tensor, torch.nn.Module(), torch.optim.Optimizer, torch.Generator, torch.utils.data.Dataset)
    owners = (*owners, torch.distributions.Distribution, torch.autograd.Function)
    names = {name for owner in owners for name in dir(owner) if name.startswith("_") and not name.startswith("__")}
    found = []
    for path in sorted(Path(diffeo.__file__).parent.rglob("*.py")):
        if path.name == "private.py":
            continue
        own = path.read_text()
        for node in ast.walk(ast.parse(own)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                private = any(part.startswith("_") for part in [*node.module.split("."), *(a.name for a in node.names)])
                found += [(path.name, node.lineno, node.module)] if private else []
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
                continue
            of_torch = ast.unparse(node).startswith("torch.")
            own_name = f"def {node.attr}(" in own or f"self.{node.attr} = " in own
            if of_torch or (node.attr in names - EXTENDED and not own_name):
                found.append((path.name, node.lineno, ast.unparse(node)))
    assert found == []


def imports(path: Path) -> set[str]:
    """The modules of this package that one imports, inside of functions and for types too."""
    modules, found = set(MODULES), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            found |= {name} if name else set()
    return found


ROOT = Path(diffeo.__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "diffeo").rglob("*.py")
}


def test_no_imports_go_in_a_circle():
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # or a CycleError, which names them
    assert len(order) == len(MODULES) > 200


def test_no_function_hides_its_module():
    code = (
        "import pkgutil, importlib, sys, diffeo\n"
        "for m in pkgutil.walk_packages(diffeo.__path__, 'diffeo.'):\n"
        "    '__main__' in m.name or importlib.import_module(m.name)\n"
        "split = [(name, *name.rpartition('.')) for name in sys.modules if name.startswith('diffeo.')]\n"
        "print([n for n, up, _, leaf in split if getattr(sys.modules[up], leaf, None) is not sys.modules[n]])\n"
        "import diffeo.targets"
    )
    assert run(code).strip() == "[]"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["fit", "--help"], ["score", "--help"]])
def test_the_program_answers_without_what_loads_slowly(arguments):
    slow = {"torch", "pandas", "rich"}
    code = f"import sys; from diffeo.cli import main; main({arguments}); print({slow} & set(sys.modules) or 'none')"
    assert run(code).splitlines()[-1] == "none"


def test_recipes_are_listed_however_the_package_was_imported():
    for code in (
        "import diffeo",
        "import diffeo; diffeo.Flow",
        "from diffeo.recipes import find_recipe; import diffeo",
    ):
        assert run(f"{code}; print('nsf' in diffeo.recipes())").strip() == "True"
