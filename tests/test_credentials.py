"""Content Credentials: what is signed says so, verifies and plays; what cannot sign is said before a frame is drawn."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import dubbed, frames_of, house, times_of  # noqa: F401 (house is a fixture)

from lipdub import media
from lipdub.errors import LipdubError, OutputRefused
from lipdub.media.credentials import SOURCE_TYPE, Credentials, credentials_in

pytest.importorskip("c2pa")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KEYS = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
    "ED25519": ed25519.Ed25519PrivateKey.generate,
}


def certificate(subject: str, public: object, signer: object, *, authority: bool) -> x509.Certificate:
    """As C2PA asks for them: version 3, what the key is for, who signed."""
    now = datetime.datetime.now(datetime.timezone.utc)
    names = {
        who: x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "test"), x509.NameAttribute(NameOID.COMMON_NAME, who)])
        for who in ("authority", subject)
    }
    use = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    made = (
        x509.CertificateBuilder().subject_name(names[subject]).issuer_name(names["authority"]).public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=authority, crl_sign=authority, **use), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )  # fmt: skip
    if not authority:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return made.sign(signer, hashes.SHA256())


def write_pem(path: Path, kind: str = "ES256") -> Path:
    """A private key, its certificate and that of a certificate authority."""
    root, key = ec.generate_private_key(ec.SECP256R1()), KEYS[kind]()
    chain = [
        certificate("signer", key.public_key(), root, authority=False),
        certificate("authority", root.public_key(), root, authority=True),
    ]
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_signed_dub_says_what_it_is_and_plays_as_before(house: Path, tmp_path: Path, suffix: str) -> None:  # noqa: F811
    pem = write_pem(tmp_path / "me.pem")
    (tmp_path / "out").mkdir()
    plain, signed = tmp_path / "out" / f"plain{suffix}", tmp_path / "out" / f"signed{suffix}"
    dubbed(house, plain)
    dubbed(house, signed, credentials=str(pem))
    assert credentials_in(plain) is None
    told = credentials_in(signed)
    assert told is not None
    assert told["validation_state"] == "Valid"
    assert SOURCE_TYPE in json.dumps(told)
    np.testing.assert_array_equal(frames_of(signed), frames_of(plain))
    assert times_of(signed) == times_of(plain)
    np.testing.assert_array_equal(*(np.concatenate([*media.read_audio(path, 16000)]) for path in (signed, plain)))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"plain{suffix}", f"signed{suffix}"]


def test_a_changed_file_does_not_verify(house: Path, tmp_path: Path) -> None:  # noqa: F811
    dubbed(house, tmp_path / "out.mp4", credentials=str(write_pem(tmp_path / "me.pem")))
    data = bytearray((tmp_path / "out.mp4").read_bytes())
    data[-2000] ^= 255
    (tmp_path / "out.mp4").write_bytes(data)
    told = credentials_in(tmp_path / "out.mp4")
    assert told is not None
    assert told["validation_state"] == "Invalid"


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_kind_sign(tmp_path: Path, kind: str) -> None:
    Credentials(write_pem(tmp_path / "me.pem", kind), tmp_path / "out.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["me.pem"]


def test_what_cannot_sign_is_one_line_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = write_pem(tmp_path / "me.pem")
    key, leaf, root = (b"-----BEGIN " + block for block in pem.read_bytes().split(b"-----BEGIN ")[1:])
    cases: list[tuple[bytes | None, str, str]] = [
        (pem.read_bytes(), "out.mkv", ".mp4 and .mov"),
        (None, "out.mp4", "cannot read the credentials"),
        (key, "out.mp4", "0 certificates"),
        (leaf + root, "out.mp4", "0 private keys"),
        (key + key + leaf, "out.mp4", "2 private keys"),
        (key.replace(b"M", b"N") + leaf + root, "out.mp4", "cannot be read"),
        (another_key() + leaf + root, "out.mp4", "cannot sign"),
    ]
    for content, name, says in cases:
        given = tmp_path / "given.pem"
        given.unlink(missing_ok=True)
        if content is not None:
            given.write_bytes(content)
        with pytest.raises(OutputRefused, match=says) as caught:
            Credentials(given, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert {file.name for file in tmp_path.iterdir()} <= {"me.pem", "given.pem"}
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(OutputRefused, match=r'pip install "lipdub\[c2pa\]"'):
        Credentials(pem, tmp_path / "out.mp4")


def another_key() -> bytes:
    """A key that the certificate is not of."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def test_an_output_that_is_there_is_kept(house: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "out.mp4").write_text("kept")
    with pytest.raises(LipdubError, match="--force"):
        dubbed(house, tmp_path / "out.mp4", credentials=str(write_pem(tmp_path / "me.pem")))
    assert (tmp_path / "out.mp4").read_text() == "kept"
