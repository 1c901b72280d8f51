"""Builds three libraries, each of which may be missing at run time without the others failing:

fusedrnn/_C.so     ops and CPU kernels; torch's stable ABI, so any torch from 2.11 on and any Python loads it
fusedrnn/_plan...  pybind11: the planner as typed values; knows no torch
fusedrnn/_cuda.so  CUDA kernels; built when torch has CUDA and nvcc is found (FUSEDRNN_CUDA=0|1|auto)

Without torch or without a compiler it installs the Python part and says what is missing (`pip install -v` shows it, and
so does `python -m fusedrnn`).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)
sys.path.insert(0, str(ROOT / "tools"))
import build_backend  # noqa: E402, F401  (puts the target environment on sys.path; changes nothing without isolation)
import sources  # noqa: E402

TORCH_TARGET = "0x020b000000000000"  # 2.11: the oldest torch whose stable ABI the binaries may use
CUDA_ARCHS = "8.0;9.0a"  # where no GPU is in sight; else what the machine has
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden"]


def say(text):
    print("fusedrnn:", text, file=sys.stderr, flush=True)


def module_from(path):
    """A file of the package by itself: importing the package would load what is being built."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


package_build = module_from(ROOT / "fusedrnn" / "_build.py")


def cuda_toolkit():
    """(CUDA root, "13.0") of the nvcc on the path, even where that nvcc is a wrapper script; None if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc")
    if nvcc is None:
        return None
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    if "release " not in version:
        return None
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull, "-c"]
    dryrun = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = [line.split("TOP=")[1].strip() for line in dryrun.splitlines() if "TOP=" in line]
    root = os.path.realpath(top[0]) if top else os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))
    return root, version.split("release ")[1].split(",")[0]


def why_no_cuda(torch):
    """Why not to build _cuda, None if it can be; under FUSEDRNN_CUDA=1 whatever is in the way is an error."""
    wish, reason = os.environ.get("FUSEDRNN_CUDA", "auto"), None
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"fusedrnn: FUSEDRNN_CUDA: expected 0, 1 or auto, got {wish!r}")
    if not sources.cuda():
        return "this checkout has no CUDA sources"
    toolkit = cuda_toolkit()
    if wish == "0":
        reason = "FUSEDRNN_CUDA=0"
    elif torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a build without CUDA"
    elif toolkit is None:
        reason = f"no nvcc found; install the CUDA {torch.version.cuda} toolkit and set CUDA_HOME"
    elif toolkit[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        major = torch.version.cuda.split(".")[0]
        reason = (
            f"nvcc is {toolkit[1]} but torch was built for CUDA {torch.version.cuda}; "
            f"point CUDA_HOME at a CUDA {major} toolkit"
        )
    if reason and wish == "1":
        raise SystemExit(f"fusedrnn: FUSEDRNN_CUDA=1, but {reason}")
    if reason:
        say(f"building without the CUDA kernels: {reason}")
        return reason
    os.environ["CUDA_HOME"] = toolkit[0]  # read when torch.utils.cpp_extension is imported
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", cuda_archs(torch))
    return None


def cuda_archs(torch):
    """The architectures of this machine's GPUs; where none is in sight, those of an A100 and of an H100."""
    if not torch.cuda.is_available():
        return CUDA_ARCHS
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    able = sorted(arch for arch in found if arch >= (8, 0))  # what the kernels are written for
    if not able:
        return CUDA_ARCHS
    return ";".join(f"{major}.{minor}{'a' if major >= 9 else ''}" for major, minor in able)


def plan_extension(torch_include):
    """The planner's module, or nothing where Python's own headers are not installed."""
    if not sources.plan():
        return []
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        say("no Python.h: building without the planner's module; on Debian and Ubuntu: apt install python3-dev")
        return []
    try:
        import pybind11

        include = [pybind11.get_include()]
    except ImportError:
        include = torch_include  # torch ships pybind11's headers
    flags = {"cxx": [*CXX_FLAGS, "-O1"]}
    return [
        Extension(
            "fusedrnn._plan", sources.plan(), include_dirs=[str(ROOT / "csrc"), *include], extra_compile_args=flags
        )
    ]


def extensions():
    if os.name != "posix":
        say("the compiled kernels are for Linux and macOS: installing without them")
        return [], {}
    try:
        import torch
    except ImportError:
        say("no torch in the target environment yet: the kernels are compiled at the first import")
        return [], {}
    compiler = package_build.compiler()
    if compiler is None:
        name = os.environ.get("CXX", "c++")
        say(f"no C++ compiler ({name}): installing without kernels; install g++ or clang++, then repeat this command")
        return [], {}
    no_cuda = why_no_cuda(torch)
    from torch.utils import cpp_extension as torch_ext  # reads CUDA_HOME: after why_no_cuda

    try:  # ninja from pip, even when its scripts are not on the path
        import ninja

        os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ["PATH"]
    except ImportError:
        pass
    isas = sources.instruction_sets()
    for name in [name for name, flags in isas.items() if sources.unknown(compiler, flags)]:
        say(f"{compiler} does not know {name}'s instructions: installing without that kernel")
        del isas[name]
    common = {
        "include_dirs": [str(ROOT / "csrc"), *torch_ext.include_paths()],
        "library_dirs": torch_ext.library_paths(),
        "define_macros": [
            ("TORCH_TARGET_VERSION", TORCH_TARGET),
            *((f"FUSEDRNN_HAVE_{name}", "1") for name in isas if name != "generic"),
        ],
        "depends": [str(path) for path in (ROOT / "csrc").rglob("*.h")],
    }
    flags = {"cxx": CXX_FLAGS}
    modules = [Extension("fusedrnn._C", sources.ops(), libraries=["torch_cpu"], extra_compile_args=flags, **common)]
    modules += plan_extension(common["include_dirs"])
    if no_cuda is None:
        home = os.environ["CUDA_HOME"]
        common["library_dirs"] = [*common["library_dirs"], os.path.join(home, "lib64")]
        common["include_dirs"] = [*common["include_dirs"], os.path.join(home, "include")]
        debug = ["-DFUSEDRNN_BOUND_SPINS"] if os.environ.get("FUSEDRNN_DEBUG", "0") != "0" else []
        flags = {"cxx": CXX_FLAGS, "nvcc": ["-std=c++20", "-O3", "-lineinfo", *debug]}
        libraries = ["torch_cpu", "torch_cuda", "cudart"]
        modules.append(
            Extension("fusedrnn._cuda", sources.cuda(), libraries=libraries, extra_compile_args=flags, **common)
        )

    class BuildExt(torch_ext.BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # pip's editable build compiles in a fresh temporary directory; a kept one lets ninja rebuild what changed
            key = f"{sys.implementation.cache_tag}-torch{torch.__version__}-{platform.machine()}"
            self.build_temp = str(ROOT / "build" / key)

        def get_ext_filename(self, name):  # _C and _cuda hold no Python: one file for every Python
            path = super().get_ext_filename(name)
            return path if name.endswith("_plan") else path.split(".")[0] + ".so"

        def get_export_symbols(self, ext):  # no PyInit in _C and _cuda
            return []

        def compile_kernels(self, isa):
            return self.compiler.compile(
                sources.kernels(),
                output_dir=os.path.join(self.build_temp, isa),
                include_dirs=[str(ROOT / "csrc")],
                macros=[("FUSEDRNN_ISA", isa)],
                extra_postargs={"cxx": [*CXX_FLAGS, *isas[isa]]},
            )

        def build_extension(self, ext):
            top = self.build_temp
            self.build_temp = os.path.join(top, ext.name)
            if ext.name == "fusedrnn._C":
                # a ninja file each, so they may run side by side; torch's way without ninja swaps compilers in place
                with ThreadPoolExecutor(len(isas) if self.use_ninja else 1) as pool:
                    ext.extra_objects += [path for objects in pool.map(self.compile_kernels, isas) for path in objects]
            super().build_extension(ext)
            self.build_temp = top

        def run(self):
            super().run()
            package = (ROOT if self.inplace else Path(self.build_lib)) / "fusedrnn"
            names = [ext.name for ext in self.extensions]
            facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "libraries": names, "no_cuda": no_cuda}
            package_build.write_record(package / "_build.json", **facts)

    return modules, {"build_ext": BuildExt}


modules, commands = extensions()
setup(ext_modules=modules, cmdclass=commands)
