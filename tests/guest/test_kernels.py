"""Each kernel of the lab: the one that was asked for, on the processor that was asked for, with its own compiler."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from dynamos_ng.build import kbuild

VULNERABILITIES = Path("/sys/devices/system/cpu/vulnerabilities")
#: What a kernel says of itself on each of the lab's processors, and does not say on the others.
SAID = {
    "its": ("indirect_target_selection", r"Mitigation: .*return thunks"),
    "srso": ("spec_rstack_overflow", r"(?i)safe RET"),
    "stuff": ("retbleed", r"Mitigation: Stuffing"),
}


@pytest.mark.everywhere
def test_the_kernel_is_the_one_that_was_asked_for(variant: str) -> None:
    version, _, architecture = variant.partition("+")[0].partition("-")
    assert re.match(rf"{re.escape(version)}\.\d", platform.release())
    assert platform.machine() == ("i686" if architecture else "x86_64")


@pytest.mark.everywhere
def test_a_module_of_the_kernels_own_compiler_loads(tmp_path: Path) -> None:
    (tmp_path / "Kbuild").write_text("obj-m := empty.o\n")
    (tmp_path / "empty.c").write_text('#include <linux/module.h>\nMODULE_LICENSE("GPL");\nMODULE_DESCRIPTION("-");\n')
    kbuild.make(tmp_path, "modules")
    compiler = re.search(r"gcc\S* \(Debian [^)]*\) (\d+)\.", Path("/proc/version").read_text())
    comment = subprocess.run(
        ["readelf", "-p", ".comment", tmp_path / "empty.ko"], capture_output=True, text=True, check=True
    ).stdout
    assert compiler is not None
    assert re.search(rf"GCC: \(Debian [^)]*\) {compiler[1]}\.", comment)
    subprocess.run(["insmod", tmp_path / "empty.ko"], check=True)
    try:
        assert "empty " in Path("/proc/modules").read_text()
    finally:
        subprocess.run(["rmmod", "empty"], check=True)


@pytest.mark.processors
def test_the_kernel_patches_itself_as_its_processor_wants(variant: str) -> None:
    asked = variant.partition("+")[2]
    said = {
        name for name, (file, words) in SAID.items() if re.search(words, (VULNERABILITIES / file).read_text())
    }
    assert said >= ({asked} if asked else set())
    assert asked or not said
