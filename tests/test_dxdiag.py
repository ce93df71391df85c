"""A Windows machine judged by its DxDiag report: in any encoding, with several adapters, damaged or hostile."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altlas_lib import devices, environment
from altlas_lib.environment import checks, dxdiag

# Laid out as reports that people published: a laptop with two adapters, and the second display of the same GPU.
SYSTEM = """------------------
System Information
------------------
      Time of this report: 8/11/2025, 20:32:59
         Operating System: Windows 11 {edition} 64-bit (10.0, Build {build}) ({build}.ge_release.240331-1435)
                 Language: {language} (Regional Setting: {language})
                   Memory: {ram}MB RAM
      Available OS Memory: 32488MB RAM
                Page File: 21010MB used, 60628MB available
           DxDiag Version: 10.00.{build}.4768 64bit Unicode

---------------
Display Devices
---------------
"""
ADAPTER = r"""           Card name: {name}
        Manufacturer: {vendor}
           Chip type: {name}
          Device Key: Enum\PCI\VEN_{pci}&DEV_1F9D&SUBSYS_22D417AA&REV_A1
      Display Memory: {display} MB
    Dedicated Memory: {dedicated} MB
       Shared Memory: 16244 MB
        Current Mode: 1920 x 1080 (32 bit) (60Hz)
        Monitor Name: {monitor}
 Driver File Version: 32.00.0015.7322 (English)
      Driver Version: {driver}
           Vendor ID: 0x{pci}

"""
INTEL = {"name": "Intel(R) Iris(R) Xe Graphics", "vendor": "Intel Corporation", "pci": "8086", "driver": "31.0.101.5388"}


def adapter(name="NVIDIA GeForce RTX 3060", dedicated=12129, driver="32.0.15.8180", **fields):
    fields = {"vendor": "NVIDIA", "pci": "10DE", "monitor": "Generic PnP Monitor"} | fields
    display = dedicated + 16244
    return ADAPTER.format(name=name, dedicated=dedicated, display=display, driver=driver, **fields).replace(
        "32.00.0015.7322", driver
    )


WITHOUT_MEMORY = re.sub(r"\d+ MB", "n/a", adapter())


def report(*adapters, edition="Pro", build=26100, language="English", ram=32768):
    return SYSTEM.format(edition=edition, build=build, language=language, ram=ram) + "".join(adapters or [adapter()])


@pytest.fixture
def read(tmp_path):
    def write_and_read(content):
        path = tmp_path / "DxDiag.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return environment.read_dxdiag(path)

    return write_and_read


def statuses(found, **how):
    return {each.check: each.status for each in environment.findings_from_dxdiag(found, **how)}


def test_a_machine_that_suits_has_nothing_but_ok(read):
    found = environment.findings_from_dxdiag(read(report()))
    assert [(each.check, each.status) for each in found] == [
        *(("GPU 0", "ok"), ("GPU 0 memory", "ok"), ("GPU 0 driver", "ok"), ("Memory", "ok"), ("WSL2", "ok"), ("Windows", "ok"))
    ]
    text = environment.format_findings(found)
    assert "compute capability 8.6: CUDA 12 and 13" in text
    assert "11.8 GiB dedicated by DxDiag; capped or wrong on some systems" in text
    assert "581.80: CUDA 12 and 13" in text
    assert "TensorFlow uses the GPU in WSL2 only" in " ".join(text.split())
    assert "CuPy and PyTorch use the GPU natively" in text


@pytest.mark.parametrize(
    ("encoding", "language", "edition", "monitor"),
    [
        ("utf-8", "English", "Pro", "Generic PnP Monitor"),
        ("utf-8-sig", "Chinese (Simplified)", "专业版", "通用即插即用监视器"),
        ("utf-16", "Korean", "Home", "일반 PnP 모니터"),
        ("utf-16-le", "Russian", "Домашняя", "Универсальный монитор PnP"),
        ("utf-16-be", "Japanese", "Home", "汎用 PnP モニター"),
        ("cp1254", "Turkish", "Giriş", "Genel PnP Monitör"),
        ("cp1252", "French", "Édition Familiale", "Moniteur Plug-and-Play générique"),
        ("cp932", "Japanese", "Home", "汎用 PnP モニター ソ"),
        ("gbk", "Chinese (Simplified)", "专业版", "通用即插即用监视器"),
    ],
)
def test_encodings_and_languages(read, encoding, language, edition, monitor):
    text = report(adapter(monitor=monitor), edition=edition, language=language).replace("\n", "\r\n")
    found = read(text.encode(encoding))
    assert found == read(report())


def test_a_report_whose_labels_are_translated_is_read_by_its_structure(read):
    labels = {"Card name": "Kartenname", "Display Memory": "Anzeigespeicher", "Dedicated Memory": "Dedizierter Speicher"}
    labels |= {"Shared Memory": "Gemeinsam genutzt", "Driver Version": "Treiberversion", "Device Key": "Geräteschlüssel"}
    labels |= {"   Memory": "Arbeitsspeicher", "DxDiag Version": "DxDiag-Version", "Chip type": "Chiptyp"}
    text = report(adapter(), adapter(**INTEL, dedicated=128))
    for english, german in labels.items():
        text = text.replace(f"{english}:", f"{german} :")
    assert read(text) == read(report(adapter(), adapter(**INTEL, dedicated=128)))


def test_several_adapters_and_displays(read):
    found = read(
        report(adapter(**INTEL, dedicated=128), adapter(), adapter(monitor="second display"), adapter("NVIDIA T400 4GB", 3900))
    )
    assert [(each.name, each.is_nvidia) for each in found.adapters] == [
        ("Intel(R) Iris(R) Xe Graphics", False),
        ("NVIDIA GeForce RTX 3060", True),
        ("NVIDIA T400 4GB", True),
    ]
    assert {"GPU 0", "GPU 1"} <= statuses(found).keys()


def test_what_people_paste_without_blank_lines_between_adapters_is_read(read):
    text = report(adapter(**INTEL, dedicated=128), adapter())
    pasted = "\n".join(line.strip() for line in text.splitlines() if line.strip())
    assert read(pasted) == read(text)


@pytest.mark.parametrize(
    ("changed", "check", "status", "text"),
    [
        ({"adapters": [adapter(**INTEL, dedicated=128)]}, "GPU", "failure", "no NVIDIA GPU, only Intel(R) Iris(R) Xe Graphics"),
        ({"adapters": [adapter("NVIDIA GeForce GT 710")]}, "GPU 0", "failure", "compute capability 3.5: CUDA 12 needs 5.0"),
        ({"adapters": [adapter("NVIDIA GeForce GTX 1080")]}, "GPU 0", "ok", "CUDA 12 (not CUDA 13, which needs 7.5)"),
        ({"adapters": [adapter("NVIDIA GeForce RTX 9999")]}, "GPU 0", "warning", "not in the table"),
        ({"adapters": [adapter(driver="31.0.15.2802")]}, "GPU 0 driver", "failure", "528.02: CUDA 12 needs 528.33"),
        ({"adapters": [adapter(driver="31.0.15.2833")]}, "GPU 0 driver", "ok", "528.33: CUDA 12; CUDA 13 needs 580"),
        ({"adapters": [adapter(driver="27.21.14.5541")]}, "GPU 0 driver", "failure", "455.41"),
        ({"adapters": [adapter(driver="")]}, "GPU 0 driver", "warning", "does not say"),
        ({"adapters": [adapter(dedicated=4095)]}, "GPU 0 memory", "warning", "4.0 GiB by DxDiag, 12 GiB by the data sheet"),
        ({"adapters": [adapter("NVIDIA GeForce MX450", 1985)]}, "GPU 0 memory", "warning", "little for training"),
        ({"adapters": [WITHOUT_MEMORY]}, "GPU 0 memory", "warning", "does not say"),
        ({"ram": 4096}, "Memory", "warning", "4.0 GiB: WSL2 gives Linux half"),
        ({"build": 18363}, "WSL2", "warning", "needs build 19044"),
    ],
)  # fmt: skip
def test_what_does_not_suit_is_said_with_what_to_do(read, changed, check, status, text):
    found = environment.findings_from_dxdiag(read(report(*changed.pop("adapters", ()), **changed)))
    (finding,) = [each for each in found if each.check == check]
    assert (finding.status, text in finding.found) == (status, True)
    assert bool(finding.fix) == (status != "ok")


def test_gpu_only_leaves_the_machine_out(read):
    assert statuses(read(report(ram=2048)), gpu_only=True) == {"GPU 0": "ok", "GPU 0 memory": "ok", "GPU 0 driver": "ok"}


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "8.9"),
        ("NVIDIA GeForce RTX 5070 Ti Laptop GPU", "12.0"),
        ("NVIDIA GeForce RTX 4090 D", "8.9"),
        ("GeForce GTX 1050Ti", "6.1"),
        ("NVIDIA GeForce GTX 1060 6GB", "6.1"),
        ("NVIDIA GeForce GTX 1660 Ti with Max-Q Design", "7.5"),
        ("NVIDIA Quadro RTX 4000", "7.5"),
        ("NVIDIA RTX 4000 Ada Generation", "8.9"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "12.0"),
        ("NVIDIA RTX A2000 12GB", "8.6"),
        ("Quadro P2000 with Max-Q Design", "6.1"),
        ("NVIDIA TITAN X (Pascal)", "6.1"),
        ("NVIDIA GeForce GTX TITAN X", "5.2"),
        ("NVIDIA A100-PCIE-40GB", "8.0"),
        ("NVIDIA GeForce RTX 6090", None),
        ("", None),
    ],
)
def test_names_and_their_compute_capability(name, capability):
    assert dxdiag.find_capability(name) == capability


def test_the_table_of_names_agrees_with_the_catalogue_and_names_nothing_twice():
    table = tomllib.loads(Path(dxdiag.__file__).with_name("gpu_names.toml").read_text("utf-8"))
    names = [name for names in table["names"].values() for name in names]
    assert len(names) == len(set(names))
    assert not {word for name in names for word in name.split()} & set(table["left_out"])
    for gpu in devices.load_catalogue():
        for alias in gpu.aliases:
            assert dxdiag.find_capability(alias) in (gpu.compute_capability, None), alias
    assert all(dxdiag.find_capability(name) for name in ("Tesla T4", "NVIDIA L4", "NVIDIA GeForce RTX 4090", "NVIDIA A10"))


def test_every_text_can_be_called_for(read):
    named = {}
    for found in (report(), report(adapter(**INTEL, dedicated=128))):
        content = read(found)
        cuda = {major: {"capability": 1.0, "driver": 1.0} for major in ("12", "13")}
        for _, section, rows, _ in [*dxdiag._gpu_checks(content, cuda), *dxdiag._machine_checks(content)]:
            named.setdefault(section, set()).update(rows)
    texts = tomllib.loads(Path(checks.__file__).with_name("checks.toml").read_text("utf-8"))
    assert {section: set(rows) for section, rows in texts.items() if section.startswith("DxDiag")} == named


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"hello", b"\xff\xfe", b"Card name:\n", b"a: b\n" * 100_000])
def test_what_is_no_report_is_refused(read, content):
    with pytest.raises(ValueError, match="names no display adapter"):
        read(content)


def test_a_file_without_end_is_refused_and_so_is_a_huge_one(tmp_path):
    with pytest.raises(ValueError, match="no regular file: '/dev/zero'"):
        environment.read_dxdiag("/dev/zero")
    with open(tmp_path / "x", "wb") as file:
        file.truncate(2**34)
    with pytest.raises(ValueError, match="larger than 16 MiB"):
        environment.read_dxdiag(tmp_path / "x")


def test_a_hostile_name_does_not_steer_the_terminal_and_thousands_of_adapters_do_not_fill_it(read):
    found = read(report(*(adapter(f"NVIDIA \x1b[31m{{{{ 7 * 7 }}}} {i}" + "x" * 1000) for i in range(500))))
    assert len(found.adapters) <= 64
    text = environment.format_findings(environment.findings_from_dxdiag(found))
    assert "\x1b" not in text
    assert "49" not in text.split("GPU 0")[1][:80]


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_any_bytes_in_a_report_are_a_finding_or_a_message(tmp_path_factory, noise, at):
    content = report().encode()
    path = tmp_path_factory.mktemp("dx") / "x.txt"
    path.write_bytes(content[:at] + noise + content[at:])
    try:
        found = environment.findings_from_dxdiag(environment.read_dxdiag(path))
    except ValueError:
        return
    assert all("None" not in each.found for each in found)


def test_the_command_says_it_and_its_exit_code_too(tmp_path):
    def check(*arguments):
        command = [sys.executable, "-m", "altlas_lib.cli", "check", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    path = tmp_path / "it's Dx{Diag}.txt"
    path.write_text(report(), encoding="utf-16")
    suits = check("--dxdiag", path, "--gpu-only")
    assert (suits.returncode, suits.stdout.splitlines()[-1]) == (0, "ready")
    path.write_text(report(adapter(**INTEL, dedicated=128)))
    assert check("--dxdiag", path).returncode == 1
    missing = check("--dxdiag", tmp_path / "none.txt")
    assert missing.returncode == 1
    assert "none.txt" in missing.stderr
    assert "Traceback" not in missing.stderr
