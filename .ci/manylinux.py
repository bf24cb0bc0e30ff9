"""Makes folders of stand-ins for glibc and libstdc++ that offer what manylinux_2_28 has, no more.

A linker takes the newest version of each symbol that the system's libraries have, and what it has
linked then runs on no older system. Linked against the stand-ins, which name the versions of an
older system, it runs there. What no older version of libstdc++ has comes from its static archive.

    LDFLAGS="$(python .ci/manylinux.py build/manylinux)" pip wheel .
"""

import re
import subprocess
import sys
from pathlib import Path

NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
"""Newest version of each set of symbols that manylinux_2_28 has."""

# Code that may ask glibc 2.32 whether the process has one thread is told here that it has several.
NEWER = "char __libc_single_threaded = 0;"


def system_file(name: str) -> Path:
    """Returns the path of a file that the compiler links by its name."""
    command = ["g++", f"-print-file-name={name}"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def is_old(version: str) -> bool:
    """Tells whether manylinux_2_28 has a version such as "GLIBC_2.17"."""
    kind, _, number = version.partition("_")
    if not re.fullmatch(r"[\d.]+", number):
        return False  # GLIBC_PRIVATE
    return kind in NEWEST and parts(version) <= NEWEST[kind]


def parts(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version: (2, 17) of "GLIBC_2.17"."""
    return tuple(map(int, version.partition("_")[2].split(".")))


def old_symbols(library: Path) -> dict[str, tuple[str, str]]:
    """Returns type and newest old version of each symbol of a library that has one."""
    command = ["readelf", "--dyn-syms", "--wide", library]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pattern = r"(FUNC|IFUNC|OBJECT|TLS) +\w+ +\w+ +\d+ (\S+?)@@?(\S+)$"
    found = [f for f in re.findall(pattern, listing, re.MULTILINE) if is_old(f[2])]
    found.sort(key=lambda f: parts(f[2]))
    return {name: (kind, version) for kind, name, version in found}


def make_stand_in(library: Path, folder: Path) -> Path:
    """Links a shared object of a library's old symbols, which is linked against and never run."""
    sections = {"TLS": ('.section .tdata, "awT"', "tls_object"), "OBJECT": (".data", "object")}
    code, versions = [], set()
    for number, (name, (kind, version)) in enumerate(old_symbols(library).items()):
        section, symbol_type = sections.get(kind, (".text", "function"))
        code += [section, f".globl s{number}", f".type s{number}, @{symbol_type}"]
        code += [f".symver s{number}, {name}@@{version}, remove", f"s{number}: .quad 0"]
        versions.add(version)
    source, script = folder / f"{library.name}.s", folder / f"{library.name}.versions"
    source.write_text("\n".join(code) + "\n")
    script.write_text("".join(f"{v} {{ }};\n" for v in sorted(versions, key=parts)))
    target = folder / library.name
    command = ["gcc", "-shared", "-nostdlib", "-o", target, source, f"-Wl,-soname,{library.name}"]
    subprocess.run([*command, f"-Wl,--version-script={script}"], check=True)
    return target


def make_archive(code: str, target: Path) -> Path:
    """Compiles C code into an archive."""
    made = target.with_suffix(".o")
    command = ["gcc", "-c", "-fPIC", "-fvisibility=hidden", "-x", "c", "-", "-o", made]
    subprocess.run(command, input=code, text=True, check=True)
    target.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", target, made], check=True)
    return target


def main(folder: Path) -> None:
    """Makes the stand-ins and prints the flags that link with them."""
    folder.mkdir(parents=True, exist_ok=True)
    stdcxx = make_stand_in(system_file("libstdc++.so.6"), folder)
    archive = system_file("libstdc++.a").resolve()
    (folder / "libstdc++.so").write_text(f"GROUP ( {stdcxx} {archive} )\n")
    libm = make_stand_in(system_file("libm.so.6"), folder)
    (folder / "libm.so").write_text(f"INPUT ( {libm} )\n")
    libc = make_stand_in(system_file("libc.so.6"), folder)
    newer = make_archive(NEWER, folder / "libc_newer.a")
    script = re.sub(r"\S+/libc\.so\.6", f"{libc} {newer}", system_file("libc.so").read_text())
    (folder / "libc.so").write_text(script)
    # Before glibc 2.34 threads and dlopen were in libraries of their own.
    older = "-Wl,--push-state,--no-as-needed,-l:libpthread.so.0,-l:libdl.so.2,--pop-state"
    print(f"-L{folder} -Wl,--exclude-libs,{archive.name}:{newer.name} {older}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
