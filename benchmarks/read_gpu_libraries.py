"""Read from the wheels of the GPU libraries what they offer, and write the table that chapter 10 looks its routes up in.

    python -m benchmarks.read_gpu_libraries FOLDER

Downloads the wheels into FOLDER (750 MB), unpacks them there and installs nothing; no GPU is needed. What is compiled, such as
the methods of `cupy.ndarray`, is read by importing the unpacked CuPy; all else from sources. Besides the workbook's own
dependencies it needs `uv`, which resolves the sizes of downloads, and `cuda-pathfinder`, which CuPy imports.

What no wheel states stands in `LIBRARIES` below, with its source:
- least compute capabilities: RAPIDS 7.0 (docs.rapids.ai/install, "Volta or newer"); what is built for CUDA 12 itself 5.0 (CUDA
  Toolkit 12 release notes, which removed Kepler); PyTorch 7.5 (the architectures that its wheels for CUDA 13 are built for:
  pytorch/test-infra, pull request 7046; its wheels for CUDA 12.6 start at 5.0); TensorFlow 6.0 (release notes of 2.18, "CUDA
  Update"); JAX 5.2 for CUDA 12 (its installation guide, "NVIDIA GPU"); XGBoost 5.0 (its documentation of 3.3, "XGBoost GPU
  Support");
- how a library is switched on: its own documentation;
- which call of which library DALI and cuVS have a counterpart of. That the counterpart exists is read.
"""

import argparse
import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.parser import HeaderParser
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from packaging import tags, utils

from altlas_lib.profiling.project import gpu_libraries

TABLE = Path(gpu_libraries.__file__).with_name("gpu_libraries.toml")
Names = dict[str, Iterable[str]]  # module or class of the host library -> what a GPU library has of it


class Library(NamedTuple):
    """What the wheel does not say. `names` reads the rest."""

    name: str
    package: str
    hosts: str  # the roots that it stands in for
    how: str
    condition: str = ""  # on which it offers what it has
    capability: str = "7.0"
    extra: str = ""  # to be installed
    kind: str = "drop-in library"
    deep: bool = True  # a function may be defined in any module below the one that it is listed under
    whole: bool = False  # everything of the hosts runs


def _calls(classes: str, methods: str) -> str:
    return " ".join(f"{each}.{method}" for each in classes.split() for method in methods.split())


_PARALLEL = "if the steps of its loops do not depend on each other"
LIBRARIES = [
    Library("cudf.pandas", "cudf-cu12", "pandas", "python -m cudf.pandas script.py, or %load_ext cudf.pandas before pandas"),
    Library(
        "Polars' GPU engine",
        "cudf-polars-cu12",
        "polars",
        '.collect(engine="gpu")',
        condition="as a lazy query; the whole query falls back where a step is not translated, such as Python functions "
        "(map_elements, map_batches), group_by_dynamic or weighted rolling windows",
    ),
    Library("cuml.accel", "cuml-cu12", "sklearn umap hdbscan", "python -m cuml.accel script.py, or %load_ext cuml.accel"),
    Library(
        "nx-cugraph",
        "nx-cugraph-cu12",
        "networkx",
        'NX_CUGRAPH_AUTOCONFIG=True in the environment, or backend="cugraph" in the call',
        condition="the graph is converted at the first call and cached",
    ),
    Library("cuCIM", "cucim-cu12", "skimage", "cucim.skimage in place of skimage, on CuPy arrays"),
    Library(
        "cupyx.scipy",
        "cupy-cuda12x",
        "scipy",
        "cupyx.scipy in place of scipy, on CuPy arrays",
        capability="5.0",
        extra="[ctk]",
        deep=False,
    ),
    Library(
        "CuPy", "cupy-cuda12x", "numpy", "cupy in place of numpy", capability="5.0", extra="[ctk]", kind="CuPy port", deep=False
    ),
    Library(
        "cuVS",
        "cuvs-cu12",
        "faiss hnswlib",
        "the counterpart's build and search on GPU arrays",
        condition="its calls and parameters differ; approximate indexes give other neighbours",
    ),
    Library(
        "NVIDIA DALI",
        "nvidia-dali-cuda120",
        "PIL cv2 torchvision",
        "a DALI pipeline in place of the loop over files",
        condition="many images of one kind; pixels differ slightly from the CPU's decoder and filters",
        capability="5.0",
    ),
    Library(
        "PyTorch on the GPU",
        "torch",
        "torch",
        'model.to("cuda"), inputs too; with a CUDA build of torch',
        capability="7.5",
        whole=True,
    ),
    Library(
        "TensorFlow on the GPU",
        "tensorflow",
        "tensorflow keras",
        "as it stands; for Keras, if that is its backend",
        capability="6.0",
        extra="[and-cuda]",
        whole=True,
    ),
    Library("JAX on the GPU", "jax", "jax jaxlib", "as it stands", capability="5.2", extra="[cuda12]", whole=True),
    Library("XGBoost on the GPU", "xgboost", "xgboost", 'device="cuda"', capability="5.0", whole=True),
    *(
        Library(name, package, "numba", how, _PARALLEL, "5.0", extra, "kernel of your own", whole=True)
        for name, package, extra, how in (
            ("Numba CUDA", "numba-cuda", "[cu12]", "@cuda.jit in place of @njit"),
            ("Warp", "warp-lang", "", "@wp.kernel in Python, which runs on a CPU too"),
            ("CUDA C++", "cupy-cuda12x", "[ctk]", "cupy.RawKernel, compiled when it is called"),
        )
    ),
]
# host's call -> the counterpart, a file or a function of the wheel
_CUVS = {
    "neighbors.brute_force": "IndexFlat IndexFlatL2 IndexFlatIP knn",
    "neighbors.ivf_flat": "IndexIVFFlat",
    "neighbors.ivf_pq": "IndexIVFPQ",
    "neighbors.cagra": "IndexHNSWFlat IndexNSGFlat",
}
# Pillow's images of files that fn.decoders.image reads (its documentation): decoded when their pixels are first asked for.
_FILES = " ".join(f"PIL.{name}ImagePlugin.{name}ImageFile" for name in ("Bmp", "Jpeg", "Png", "Tiff", "WebP"))
_DALI = {
    "decoders.image": f"PIL.Image.open {_calls(_FILES, 'convert load')} cv2.imread cv2.imdecode torchvision.io.decode_image "
    "torchvision.io.decode_jpeg",
    "resize": f"{_calls(f'PIL.Image.Image {_FILES}', 'resize thumbnail')} cv2.resize torchvision.transforms.Resize",
    "random_resized_crop": "torchvision.transforms.RandomResizedCrop",
    "crop": f"{_calls(f'PIL.Image.Image {_FILES}', 'crop')} torchvision.transforms.CenterCrop "
    "torchvision.transforms.RandomCrop",
    "rotate": f"{_calls(f'PIL.Image.Image {_FILES}', 'rotate')} torchvision.transforms.RandomRotation",
    "flip": f"{_calls(f'PIL.Image.Image {_FILES}', 'transpose')} cv2.flip torchvision.transforms.RandomHorizontalFlip "
    "torchvision.transforms.RandomVerticalFlip",
    "warp_affine": "cv2.warpAffine torchvision.transforms.RandomAffine",
    "color_space_conversion": "PIL.Image.Image.convert cv2.cvtColor",
    "gaussian_blur": "cv2.GaussianBlur torchvision.transforms.GaussianBlur",
    "color_twist": "torchvision.transforms.ColorJitter",
    "crop_mirror_normalize": "torchvision.transforms.Normalize",
}
_META = {  # estimators of scikit-learn that run others: as far as those are taken over
    "sklearn.calibration": "CalibratedClassifierCV",
    "sklearn.compose": "ColumnTransformer TransformedTargetRegressor",
    "sklearn.ensemble": """AdaBoostClassifier AdaBoostRegressor BaggingClassifier BaggingRegressor StackingClassifier
        StackingRegressor VotingClassifier VotingRegressor""",
    "sklearn.feature_selection": "RFE RFECV SelectFromModel SequentialFeatureSelector",
    "sklearn.inspection": "partial_dependence permutation_importance",
    "sklearn.model_selection": """GridSearchCV RandomizedSearchCV cross_val_predict cross_val_score cross_validate
        learning_curve permutation_test_score validation_curve""",
    "sklearn.multiclass": "OneVsOneClassifier OneVsRestClassifier OutputCodeClassifier",
    "sklearn.multioutput": "ClassifierChain MultiOutputClassifier MultiOutputRegressor RegressorChain",
    "sklearn.pipeline": "FeatureUnion Pipeline",
    "sklearn.semi_supervised": "SelfTrainingClassifier",
}
_NUMPY = "numpy numpy.linalg numpy.fft numpy.random numpy.lib.stride_tricks numpy.polynomial"
_SCIPY = """fft fftpack interpolate linalg ndimage signal signal.windows sparse sparse.csgraph sparse.linalg spatial
    spatial.distance special stats"""
_COMPILED = "numpy.ndarray numpy.random.Generator numpy.random.RandomState scipy.sparse.csr_matrix scipy.sparse.csc_matrix"
_PANDAS_CLASSES = "DataFrame Series Index DataFrameGroupBy SeriesGroupBy Rolling StringMethods DatetimeProperties"
_OPERATORS = re.compile(
    r"__(getitem|setitem|len|iter|contains|add|sub|mul|truediv|floordiv|mod|divmod|pow|matmul|and|or|xor|invert|neg|abs|lt|le|eq|ne|gt|ge"
    r"|lshift|rshift)__|[a-zA-Z].*"
)


# Wheels ----------------------------------------------------------------------------------------------------------------


class Wheel(NamedTuple):
    folder: Path
    metadata: Any

    @property
    def version(self) -> str:
        return self.metadata["Version"]

    @property
    def licence(self) -> str:
        stated = self.metadata["License-Expression"] or self.metadata["License"] or "not declared"
        return stated.splitlines()[0].removesuffix(" License 2.0").replace("Apache", "Apache-2.0").replace("-2.0-2.0", "-2.0")

    def requires(self, package: str) -> str:
        """'pandas>=3.0.0,<3.1.0', '' if it is not required."""
        found = (each.partition(";")[0].strip() for each in self.metadata.get_all("Requires-Dist", []))
        return next((each for each in found if re.match(rf"{re.escape(package)}\b(?!-)", each)), "")


@cache
def _wheel(folder: Path, requirement: str) -> Wheel:
    """Downloaded and unpacked, without the compiled parts where nothing is imported."""
    name = re.match(r"[\w-]+", requirement)[0]
    target = folder / name
    if not (target / "unpacked").is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", target]
        subprocess.run([*command, requirement], check=True)
        with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
            keep = [each for each in wheel.namelist() if name.startswith("cupy") or not re.search(r"\.so\b|\.bc$|\.h$", each)]
            wheel.extractall(target / "unpacked", keep)
    target /= "unpacked"
    metadata = next(target.glob("*.dist-info/METADATA")).read_text()
    return Wheel(target, HeaderParser().parsestr(metadata))


def _download(requirement: str, folder: Path) -> tuple[str, float]:
    """Its version, and the MB of it and all that it needs on Linux (x86-64), as the index states them."""
    project = folder / "lock" / re.sub(r"\W+", "_", requirement)
    project.mkdir(parents=True, exist_ok=True)
    version = ".".join(map(str, sys.version_info[:2]))
    (project / "pyproject.toml").write_text(
        '[project]\nname = "size-of-a-download"\nversion = "0"\n'
        f'requires-python = "=={version}.*"\ndependencies = ["{requirement}"]\n'
        "[tool.uv]\nenvironments = [\"sys_platform == 'linux' and platform_machine == 'x86_64'\"]\n"
    )
    subprocess.run(["uv", "lock", "--quiet", "--python", sys.executable, "--project", project], check=True)
    rank = {tag: i for i, tag in enumerate(tags.sys_tags())}
    total, versions = 0, {}
    for package in tomllib.loads((project / "uv.lock").read_text())["package"]:
        versions[package["name"]] = package["version"]
        wheels = []
        for wheel in package.get("wheels", []):
            *_, fits = utils.parse_wheel_filename(wheel["url"].rpartition("/")[2].replace("%2B", "+"))
            if known := [rank[tag] for tag in fits if tag in rank]:
                wheels.append((min(known), wheel["size"]))
        if wheels:
            total += min(wheels)[1]
    return versions[re.match(r"[\w-]+", requirement)[0]], total / 1e6


# Names -----------------------------------------------------------------------------------------------------------------


def _public(module: Path) -> set[str]:
    """Public names that a package's `__init__`, its stub, or a module imports or defines.

    Raises:
        LookupError: there are none: the wheel is laid out in a way that is not known here.
    """
    names: set[str] = set()
    for path in filter(Path.is_file, (module / "__init__.pyi", module / "__init__.py", module.with_suffix(".py"))):
        for node in _statements(ast.parse(path.read_text()).body):
            match node:
                case ast.ImportFrom(source, aliases):
                    for alias in aliases:
                        if alias.name == "*":
                            names |= _listed(module.joinpath(*(source or "").split(".")[-1:]).with_suffix(".py"))
                        names.add(alias.asname or alias.name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Assign([ast.Name(name)], _):
                    names.add(name)
    names = {name for name in names if name[0] not in "_*"}
    if not names:
        raise LookupError(f"no names were found in {module}; look how it is laid out now")
    return names


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, also where it looks at versions first."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _listed(path: Path) -> set[str]:
    """A module's `__all__`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def _in_host(names: Iterable[str], host: str) -> list[str]:
    """Of `names` those that the host's module or class has."""
    module, _, rest = host.partition(".")
    there = importlib.import_module(module)
    for part in filter(None, rest.split(".")):
        there = getattr(there, part, None) or importlib.import_module(host)
    return sorted(set(names) & set(dir(there)))


def _cupy(folder: Path) -> Names:
    wheel = _wheel(folder, "cupy-cuda12x").folder
    names = {name: _in_host(_public(wheel.joinpath("cupy", *name.split(".")[1:])), name) for name in _NUMPY.split()}
    return names | _compiled_classes(wheel, "numpy")


def _cupyx(folder: Path) -> tuple[Names, dict[str, str]]:
    import scipy

    wheel = _wheel(folder, "cupy-cuda12x").folder
    names = {
        f"scipy.{name}": _in_host(_public(wheel.joinpath("cupyx", "scipy", *name.split("."))), f"scipy.{name}")
        for name in _SCIPY.split()
    }
    packages = {module.name for module in pkgutil.iter_modules(scipy.__path__) if module.ispkg and module.name[0] != "_"}
    without = {name: [] for name in sorted(packages - {"conftest"}) if not (wheel / "cupyx/scipy" / name).is_dir()}
    distance = ast.parse((wheel / "cupyx/scipy/spatial/distance.py").read_text()).body
    needs_cuvs = [
        node.name for node in distance if isinstance(node, ast.FunctionDef) and "check_soft_dependencies()" in ast.unparse(node)
    ]
    names |= {f"scipy.{name}": none for name, none in without.items()} | _compiled_classes(wheel, "scipy")
    by_cupy = _in_host(_public(wheel / "cupy/linalg"), "scipy.linalg")
    by_cupy = sorted({*by_cupy} - {*names["scipy.linalg"]})
    names["scipy.linalg"] = [*names["scipy.linalg"], *by_cupy]
    conditions = dict.fromkeys(by_cupy, "by cupy.linalg, which has fewer options")
    solvers = ast.parse((wheel / "cupyx/scipy/sparse/linalg/_solve.py").read_text()).body
    on_cpu = [each.name for each in solvers if "not accelerated on the GPU" in _words(each)]
    conditions |= dict.fromkeys(_in_host(on_cpu, "scipy.sparse.linalg"), "factorises on the CPU and solves on the GPU")
    needs_cuvs = _in_host(needs_cuvs, "scipy.spatial.distance")
    return names, conditions | dict.fromkeys(needs_cuvs, "with cuVS (cuvs-cu12) installed too")


def _words(node: ast.stmt) -> str:
    """A function's docstring on one line."""
    return " ".join((ast.get_docstring(node) or "").split()) if isinstance(node, ast.FunctionDef) else ""


def _compiled_classes(wheel: Path, host: str) -> Names:
    sys.path.insert(0, str(wheel))
    names = {}
    for path in _COMPILED.split():
        if path.startswith(host):
            module, _, name = path.replace("numpy", "cupy").replace("scipy", "cupyx.scipy").rpartition(".")
            methods = dir(getattr(importlib.import_module(module), name))
            names[path] = _in_host(filter(_OPERATORS.fullmatch, methods), path)
    return names


class _Classes:
    """The classes of a package by name: their bases, methods, and what each method says it cannot do."""

    def __init__(self, folder: Path):
        self.nodes: dict[str, ast.ClassDef] = {}
        self.delegated: dict[str, set[str]] = {}
        for path in sorted(folder.rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                match node:
                    case ast.ClassDef(name=name):
                        self.nodes.setdefault(name, node)
                    case ast.Assign([ast.Name(name)], ast.Call(ast.Name("_create_delegating_mixin"), args)):
                        self.delegated[name] = ast.literal_eval(args[4])

    def methods(self, name: str) -> dict[str, str]:
        """Public methods, own and inherited, with what they refuse; without those that do nothing else."""
        if name not in self.nodes:
            return {}
        found: dict[str, str] = {}
        valid: set[str] = set()
        for base in reversed(self.nodes[name].bases):
            if isinstance(base, ast.Name):
                found |= self.methods(base.id)
        for node in self.nodes[name].body:
            match node:
                case ast.FunctionDef(name=method):
                    refusals = _refusals(node)
                    found.pop(method, None)
                    if refusals is not None:
                        found[method] = refusals
                case ast.Assign([ast.Name(attribute)], value) if attribute.startswith("_VALID"):
                    mixins = [
                        part.value.id
                        for part in ast.walk(value)
                        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name)
                    ]
                    valid |= set().union(*(self.delegated.get(mixin, set()) for mixin in mixins))
                    valid |= {
                        part.value for part in ast.walk(value) if isinstance(part, ast.Constant) and isinstance(part.value, str)
                    }
                case ast.Assign([ast.Name(attribute)], _):
                    found.setdefault(attribute, "")
        return {**dict.fromkeys(valid, ""), **found}


def _refusals(function: ast.FunctionDef) -> str | None:
    """What it raises NotImplementedError for; None if it only raises."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if len(body) == 1 and isinstance(body[0], ast.Raise):
        return None
    raised = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    texts = [
        call.args[0].value
        for call in raised
        if ast.unparse(call.func) == "NotImplementedError" and call.args and isinstance(call.args[0], ast.Constant)
    ]
    return _short(map(_as_condition, texts))


def _short(texts: Iterable[str]) -> str:
    """The first of some sentences, on one line."""
    found = ""
    for text in dict.fromkeys(" ".join(str(text).replace("`", "").split()).rstrip(".") for text in texts):
        joined = f"{found}; {text}" if found else text
        if len(joined) > 140:
            return f"{found}; ..." if found else textwrap.shorten(text, 140, placeholder=" ...")
        found = joined
    return found


def _cudf(folder: Path) -> tuple[Names, dict[str, str]]:
    wheel = _wheel(folder, "cudf-cu12").folder / "cudf"
    classes = _Classes(wheel / "core")
    import pandas

    names: dict[str, Iterable[str]] = {"pandas": _in_host(_public(wheel), "pandas")}
    conditions = {}
    homes = (pandas, pandas.api.typing, pandas.core.indexes.accessors, pandas.core.strings.accessor)
    for name in _PANDAS_CLASSES.split():
        host = next(getattr(home, name) for home in homes if hasattr(home, name))
        methods = classes.methods(name)
        both = sorted(each for each in methods if each in dir(host) and _OPERATORS.fullmatch(each))
        names[f"pandas.{name}"] = both
        conditions |= {f"{name}.{each}": methods[each] for each in both}
    return names, _falls_back(conditions)


def _polars(folder: Path) -> Names:
    """Lazy methods that take an engine, and eager ones that are written with lazy ones."""
    wheel = _wheel(folder, _wheel(folder, "cudf-polars-cu12").requires("polars")).folder / "polars"
    lazy, eager = _Classes(wheel / "lazyframe").nodes["LazyFrame"], _Classes(wheel / "dataframe").nodes["DataFrame"]

    def methods(of: ast.ClassDef) -> Iterator[ast.FunctionDef]:
        return (node for node in of.body if isinstance(node, ast.FunctionDef) and not node.name.startswith(("_", "map_")))

    takes_engine = {
        each.name for each in methods(lazy) if any(arg.arg == "engine" for arg in (*each.args.args, *each.args.kwonlyargs))
    }
    is_lazy = {each.name for each in methods(eager) if re.search(r"self\.lazy\(\)|\.collect\(", ast.unparse(each))}
    grouped = _Classes(wheel / "dataframe").nodes["GroupBy"]
    return {
        "polars.LazyFrame": takes_engine,
        "polars.DataFrame": is_lazy,
        "polars.GroupBy": {each.name for each in methods(grouped)},
    }


_CLASS = re.compile(r"^class (\w+)(?:\(([^)]*)\))?:", re.MULTILINE)
_RAISED = re.compile(r"UnsupportedOnGPU\(\s*((?:f?\"[^\"]*\"\s*)+)")


def _cuml(folder: Path) -> tuple[Names, dict[str, str]]:
    """The proxies of cuml.accel, and what each, its GPU class and their bases raise UnsupportedOnGPU for."""
    wheel = _wheel(folder, "cuml-cu12").folder / "cuml"
    bases: dict[tuple[bool, str], list[str]] = {}
    refused: dict[tuple[bool, str], list[str]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    for path in sorted([*wheel.rglob("*.py"), *wheel.rglob("*.pyx")]):
        if {"dask", "tests", "_thirdparty"} & set(path.parts):
            continue
        source, of_accel = path.read_text(), "accel" in path.parts
        classes = list(_CLASS.finditer(source))
        for found in classes:
            if of_accel or (False, found[1]) not in bases:
                bases[of_accel, found[1]] = re.findall(r"[\w.]*?(\w+)(?=,|\s*$|\))", found[2] or "")
        for found in _RAISED.finditer(source):
            before = [each for each in classes if each.start() < found.start()]
            owner = before[-1] if before else next(iter(classes), None)
            if owner:
                refused[of_accel, owner[1]].append("".join(re.findall(r"\"([^\"]*)\"", found[1])))
        if "_overrides" in path.parts and path.stem != "__init__":
            host = f"sklearn.{path.stem}" if path.parent.name == "sklearn" else path.stem
            names[host] += _listed(path)

    def collected(key: tuple[bool, str], seen: set) -> list[str]:
        if key in seen or key not in bases or key[1] == "ProxyBase":
            return []
        seen.add(key)
        inherited = [text for base in bases[key] for text in collected((key[0], base), seen)]
        return refused[key] + inherited

    conditions = {}
    for each in {name for listed in names.values() for name in listed}:
        texts = collected((True, each), set()) + collected((False, each), set())
        conditions[each] = _short(map(_as_condition, texts))
    import sklearn

    packages = {module.name for module in pkgutil.iter_modules(sklearn.__path__) if module.name[0] != "_"} - {"conftest"}
    all_names = {f"sklearn.{package}": [] for package in sorted(packages)} | names
    conditions = _falls_back(conditions)
    for module, meta in _META.items():
        if gone := set(meta.split()) - set(_in_host(meta.split(), module)):
            raise LookupError(f"{module} no longer has {sorted(gone)}; mend _META")
        all_names[module] = [*all_names[module], *meta.split()]
        conditions |= dict.fromkeys(meta.split(), "as far as the estimators inside are taken over")
    return all_names, conditions


_UNSUPPORTED = r"(is|are) (un|not )?(currently |yet )*(not )?(yet )?(supported|implemented)( yet)?( on GPU)?"


def _as_condition(message: str) -> str:
    """'`metric={model.metric!r}` is not supported' -> 'some values of metric'"""
    message = message.replace("`", "").replace(" {model.kernel!r}", "").replace(" {target_type!r}", "s")
    message = re.sub(r"(?:= ?)?\{?\b(\w+)(?:=\{[^}]*\}|=!r\})", r"some values of \1", message)
    message = re.sub(r"(?i)^the | (parameter|argument|kwarg)\b|^unsupported argument |^parameter ", "", message)
    message = re.sub(rf",? (does not support|{_UNSUPPORTED}|not supported yet|not currently implemented)\.?$", "", message)
    return re.sub(r"(?i)^only ", "all but ", message)


def _falls_back(conditions: dict[str, str]) -> dict[str, str]:
    return {name: f"falls back for {text}" for name, text in conditions.items() if text not in ("", "level")}


def _nx_cugraph(folder: Path) -> tuple[Names, dict[str, str]]:
    """What it tells NetworkX of itself, its entry point `networkx.backend_info`."""
    source = (_wheel(folder, "nx-cugraph-cu12").folder / "_nx_cugraph/__init__.py").read_text()
    info = next(node.value for node in ast.parse(source).body if ast.unparse(node).startswith("_info = "))
    parts = {ast.literal_eval(key): value for key, value in zip(info.keys, info.values, strict=True)}
    functions = sorted(name for name in ast.literal_eval(parts["functions"]) if "__" not in name)
    notes = ast.literal_eval(parts["additional_docs"]).items()
    conditions = {name: _short(map(_as_condition, re.split(r"(?<=\.)\s", note))) for name, note in notes if name in functions}
    return {"networkx": functions}, conditions


def _cucim(folder: Path) -> Names:
    skimage = _wheel(folder, "cucim-cu12").folder / "cucim/skimage"
    packages = sorted(path.parent for path in skimage.glob("*/__init__.py*") if path.parent.name[0] != "_")
    return {f"skimage.{path.name}": _public(path) for path in packages}


def _cuvs(folder: Path) -> tuple[Names, dict[str, str]]:
    wheel = _wheel(folder, "cuvs-cu12").folder / "cuvs"
    for counterpart in _CUVS:
        if not wheel.joinpath(*counterpart.split(".")).is_dir():
            raise LookupError(f"cuvs.{counterpart} is no longer in the wheel; mend _CUVS")
    conditions = {name: f"by cuvs.{counterpart}" for counterpart, names in _CUVS.items() for name in names.split()}
    return {"faiss": sorted(conditions), "hnswlib": ["Index"]}, conditions | {"Index": "by cuvs.neighbors.cagra"}


def _dali(folder: Path) -> tuple[Names, dict[str, str]]:
    wheel = _wheel(folder, "nvidia-dali-cuda120").folder / "nvidia/dali/fn"
    names, conditions = defaultdict(list), {}
    for counterpart, hosts in _DALI.items():
        *package, function = counterpart.split(".")
        if function not in _public(wheel.joinpath(*package)):
            raise LookupError(f"nvidia.dali.fn.{counterpart} is no longer in the wheel; mend _DALI")
        for host in hosts.split():
            module, _, name = host.rpartition(".")
            names[module].append(name)
            conditions[name] = f"by fn.{counterpart}"
    return {module: sorted(listed) for module, listed in sorted(names.items())}, conditions


_READ = {
    **{"cudf.pandas": _cudf, "Polars' GPU engine": _polars, "cuml.accel": _cuml, "nx-cugraph": _nx_cugraph, "cuCIM": _cucim},
    **{"CuPy": _cupy, "cupyx.scipy": _cupyx, "cuVS": _cuvs, "NVIDIA DALI": _dali},
}
_HOST_PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}


# The table -------------------------------------------------------------------------------------------------------------


def _entry(library: Library, folder: Path) -> str:
    read = _READ.get(library.name, lambda folder: {})(folder)
    names, conditions = read if isinstance(read, tuple) else (read, {})
    licences = {"torch": "BSD-3-Clause", "tensorflow": "Apache-2.0", "jax": "Apache-2.0", "xgboost": "Apache-2.0"}
    wheel = None if library.package in licences else _wheel(folder, library.package)  # large, and nothing to be read there
    version, download_mb = _download(library.package + library.extra, folder)
    hosts = [_HOST_PACKAGES.get(host, host) for host in library.hosts.split()]
    fields = {
        "name": library.name,
        "kind": library.kind,
        "package": library.package + library.extra,
        "version": wheel.version if wheel else version,
        "licence": wheel.licence if wheel else licences[library.package],
        "download_mb": round(download_mb, -1 if download_mb > 100 else 0),
        "least_compute_capability": library.capability,
        "hosts": library.hosts.split(),
        "needs": next(filter(None, (wheel.requires(host) for host in hosts)), "") if wheel else "",
        "how": library.how,
        "condition": library.condition,
        "deep": library.deep,
        "whole": library.whole,
    }
    lines = ["[[library]]", *(f"{key} = {_toml(value)}" for key, value in fields.items() if value not in ("", False))]
    if names:
        alike = defaultdict(list)  # modules and classes of which it has the same
        for module, listed in names.items():
            alike[" ".join(sorted(listed))].append(module)
        lines += [
            "",
            "[library.names]",
            *(f"{_toml(' '.join(modules))} = {_wrapped(listed)}" for listed, modules in alike.items()),
        ]
    if conditions:
        lines += ["", "[library.conditions]", *(f"{_toml(name)} = {_toml(conditions[name])}" for name in sorted(conditions))]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case list():
            return f"[{', '.join(map(_toml, value))}]"
    return f"{value:.0f}"


def _wrapped(names: str) -> str:
    text = textwrap.fill(names, 120, break_long_words=False, break_on_hyphens=False)
    return f'"""\n{text}"""' if len(text) > 80 else _toml(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the wheels; kept")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_entry(library, folder) for library in LIBRARIES]
    head = (
        "# What GPU libraries have, read from their wheels by `python -m benchmarks.read_gpu_libraries FOLDER`: do not edit.\n"
    )
    today = datetime.now(UTC).date()
    TABLE.write_text(f"{head}read_on = {today}\n\n" + "\n\n".join(entries) + "\n")


if __name__ == "__main__":
    main()
