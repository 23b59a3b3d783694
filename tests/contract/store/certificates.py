"""Certificates for tests, made with openssl."""

import subprocess
from pathlib import Path


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True, timeout=30)


def authority(place: Path, name: str) -> Path:
    """A CA; the path of its certificate, its key beside it."""
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem", cwd=place,
    )  # fmt: skip
    return place / f"{name}.pem"


def certificate(place: Path, ca: Path, name: str, *, serial: int, san: str = "") -> tuple[Path, Path]:
    """A certificate of that CA and its key."""
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
        "-keyout", f"{name}.key", "-out", f"{name}.csr", cwd=place,
    )  # fmt: skip
    extensions = place / f"{name}.ext"
    extensions.write_text(f"subjectAltName={san}\n" if san else "basicConstraints=CA:FALSE\n")
    openssl(
        "x509", "-req", "-in", f"{name}.csr", "-CA", str(ca), "-CAkey", str(ca.with_suffix(".key")),
        "-set_serial", str(serial), "-days", "2", "-extfile", str(extensions), "-out", f"{name}.pem", cwd=place,
    )  # fmt: skip
    return place / f"{name}.pem", place / f"{name}.key"
