"""Whether what a Secret holds can be used for TLS. Asked before Envoy is: it keeps a Secret even if it refuses it.

Nothing of a key is in what is said.
"""

from __future__ import annotations

from functools import lru_cache

from l7proxy.listening import TlsMaterial


@lru_cache(maxsize=256)
def to_end_with(material: TlsMaterial) -> str:
    """Why no TLS can be ended with it; "" if it can: a chain of certificates, and the key of the first."""
    if not (material.certificate and material.private_key):
        return "holds no certificate and key"
    from cryptography import x509  # noqa: PLC0415  # 10 MB, for those who use TLS rules
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        certificate = x509.load_pem_x509_certificates(material.certificate)[0]
    except (ValueError, UnsupportedAlgorithm):
        return "holds a certificate that is not PEM"
    try:
        key = load_pem_private_key(material.private_key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "holds a private key that cannot be read (PEM without a passphrase is what can)"
    return "" if key.public_key() == certificate.public_key() else "holds a private key that is not the certificate's"


@lru_cache(maxsize=256)
def to_trust(material: TlsMaterial) -> str:
    """Why nobody can be believed by it; "" if somebody can: certificates of authorities."""
    if not material.trusted_ca:
        return "holds no authority to trust"
    from cryptography import x509  # noqa: PLC0415
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    try:
        x509.load_pem_x509_certificates(material.trusted_ca)
    except (ValueError, UnsupportedAlgorithm):
        return "holds an authority that is not PEM"
    return ""
