"""C2PA Content Credentials: a signed statement inside the output that its lips were generated (C2PA 2.x; c2pa.org).

Only here is ``c2pa`` imported, which the extra ``lipdub[c2pa]`` brings. Nothing is fetched or reported: no time stamp server, no OCSP.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av

from lipdub import __version__
from lipdub.atomic import part_file, whole_file
from lipdub.errors import EncodingFailed, OutputRefused
from lipdub.media.containers import container_of
from lipdub.media.facts import may_be_hidden
from lipdub.media.files import url_of
from lipdub.media.kept import one_picture
from lipdub.media.output import COMMENT

if TYPE_CHECKING:
    import c2pa

SUFFIXES: Final = (".mp4", ".mov")
"""What c2pa signs of what lipdub writes."""
SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""IPTC's term for a recording of which parts were made by a trained model."""
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----\s*", re.DOTALL)


class Credentials:
    """A private key and its certificates, ready to sign."""

    def __init__(self, pem: Path, out: Path) -> None:
        """pem: one file with the key and the chain of certificates, the signer's first, as text. out: what is to be signed.

        Signs one small picture, so that what cannot be signed is said before the first frame is drawn. Raises OutputRefused.
        """
        if out.suffix.lower() not in SUFFIXES:
            raise OutputRefused(f"cannot sign '{out}': credentials go into {' and '.join(SUFFIXES)}; give the output one of these endings")
        try:
            import c2pa
        except ImportError as error:
            raise OutputRefused('--credentials needs c2pa (Python 3.10 and later); install it with: pip install "lipdub[c2pa]"') from error
        self._c2pa: Any = c2pa
        try:
            blocks = [(kind[1], kind[0]) for kind in _BLOCK.finditer(pem.read_bytes())]
        except OSError as error:
            raise OutputRefused(f"cannot read the credentials '{pem}': {error.strerror or error}; check the path") from error
        keys = [text for kind, text in blocks if kind.endswith(b"PRIVATE KEY")]
        chain = [text for kind, text in blocks if kind == b"CERTIFICATE"]
        if len(keys) != 1 or not chain:
            raise OutputRefused(f"'{pem}' holds {len(keys)} private keys and {len(chain)} certificates; give one PEM file with both")
        self._chain, self._key = b"".join(chain), keys[0]
        self._algorithm = _algorithm(self._key, pem)
        try:
            with part_file(out, hidden=may_be_hidden()) as nothing, part_file(out, hidden=may_be_hidden()) as signed:
                with av.open(url_of(nothing), "w", format=container_of(out).muxer) as container:
                    one_picture(container, out)
                self._sign(nothing, signed)
        except c2pa.C2paError as error:
            why = " ".join(str(error).split())[:200]
            raise OutputRefused(f"'{pem}' cannot sign ({why}); give a certificate for C2PA, or leave --credentials away") from error

    def sign(self, video: Path, out: Path) -> None:
        """Write `out`: the file `video` with the credentials in it, read back and verified. Raises EncodingFailed, WriteFailed."""
        try:
            with whole_file(out, hidden=may_be_hidden()) as part:
                self._sign(video, part)
        except self._c2pa.C2paError as error:
            raise EncodingFailed(f"cannot sign '{out}': {' '.join(str(error).split())[:200]}; leave --credentials away") from error

    def _sign(self, video: Path, out: Path) -> None:
        c2pa = self._c2pa
        action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "description": COMMENT}
        manifest = {
            "claim_generator_info": [{"name": "lipdub", "version": __version__}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        }
        info = c2pa.C2paSignerInfo(alg=self._algorithm, sign_cert=self._chain, private_key=self._key, ta_url=None)
        with c2pa.Signer.from_info(info) as signer, _offline(c2pa) as context, c2pa.Builder(json.dumps(manifest), context) as builder:
            builder.sign_file(str(video), str(out), signer)
        told = json.loads(_told(c2pa, out))
        actions = json.dumps(told["manifests"][told["active_manifest"]]["assertions"])
        if told.get("validation_state") == "Invalid" or SOURCE_TYPE not in actions:
            raise c2pa.C2paError(f"what was written does not verify: {told.get('validation_status')}")


def credentials_in(video: Path) -> dict[str, Any] | None:
    """What the credentials in a file say, None where there are none. Raises ImportError without c2pa."""
    import c2pa

    try:
        return dict(json.loads(_told(c2pa, video)))
    except c2pa.C2paError:
        return None


def _told(c2pa: Any, video: Path) -> str:
    with _offline(c2pa) as context, c2pa.Reader(str(video), context=context) as reader:
        return str(reader.json())


def _offline(c2pa: Any) -> Any:
    """How c2pa works: it fetches nothing."""
    with c2pa.Settings.from_dict({"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}) as settings:
        return c2pa.Context(settings)


def _algorithm(key: bytes, pem: Path) -> c2pa.C2paSigningAlg:
    """How C2PA calls the signatures of a private key. Raises OutputRefused: none that it knows, or it cannot be read."""
    import c2pa
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        loaded = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:  # TypeError: it is locked by a password
        raise OutputRefused(f"the private key in '{pem}' cannot be read ({error}); give one without a password") from error
    if isinstance(loaded, ec.EllipticCurvePrivateKey):
        curves = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
        name = curves.get(loaded.curve.name, "")
    else:
        name = "PS256" if isinstance(loaded, rsa.RSAPrivateKey) else "ED25519" if isinstance(loaded, ed25519.Ed25519PrivateKey) else ""
    if not name:
        raise OutputRefused(f"the private key in '{pem}' is of a kind that C2PA does not take; give an EC, RSA or Ed25519 key")
    return c2pa.C2paSigningAlg[name]
