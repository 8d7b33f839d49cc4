//! Files of private keys: OpenSSH's own format, and the PEM of older and other programs.
//!
//! Every number is checked by ring when it makes a key of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::error::KeyRejected;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair};

use super::key::{Curve, KeyError, KeyPair};
use super::openssh_key::{self, Fields};

/// Object identifiers in DER, with their tag: `id-ecPublicKey` (RFC 5480) and the two curves.
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const PRIME256V1: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const SECP384R1: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// The key in the text of a file.
pub(super) fn parse(text: &[u8]) -> Result<KeyPair, KeyError> {
    let text = std::str::from_utf8(text).map_err(|_| KeyError::NotAKey)?;
    let block = Block::find(text).ok_or(KeyError::NotAKey)?;
    match block.label {
        "OPENSSH PRIVATE KEY" => openssh(&block.decode()?),
        "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
        _ if block.is_encrypted() => Err(KeyError::Encrypted),
        "RSA PRIVATE KEY" => Ok(KeyPair::Rsa(RsaKeyPair::from_der(&block.decode()?).map_err(rsa_rejected)?)),
        "EC PRIVATE KEY" => sec1(&block.decode()?),
        "PRIVATE KEY" => pkcs8(&block.decode()?),
        other => Err(KeyError::Unsupported(format!("a file of `{other}`"))),
    }
}

fn openssh(file: &[u8]) -> Result<KeyPair, KeyError> {
    match openssh_key::fields(file)? {
        Fields::Ed25519 { public, seed } => {
            let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public);
            Ok(KeyPair::Ed25519(pair.map_err(rejected)?))
        }
        Fields::Ecdsa { curve: b"nistp256", public, private } => ecdsa(Curve::P256, private, public),
        Fields::Ecdsa { public, private, .. } => ecdsa(Curve::P384, private, public),
        Fields::Rsa { n, e, d, iqmp, p, q } => {
            // OpenSSH leaves out what follows from the rest: `d` modulo `p - 1` and `q - 1`.
            let (d_p, d_q) = (exponent(d, p), exponent(d, q));
            let public_key = PublicKeyComponents { n, e };
            let components = KeyPairComponents { public_key, d, p, q, dP: &*d_p, dQ: &*d_q, qInv: iqmp };
            Ok(KeyPair::Rsa(RsaKeyPair::from_components(&components).map_err(rsa_rejected)?))
        }
        Fields::Other(algorithm) => {
            Err(KeyError::Unsupported(format!("one for {}", String::from_utf8_lossy(algorithm))))
        }
    }
}

fn ecdsa(curve: Curve, private: &[u8], public: &[u8]) -> Result<KeyPair, KeyError> {
    let mut scalar = vec![0; curve.scalar_bytes().saturating_sub(private.len())];
    scalar.extend_from_slice(private);
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.signing(), &scalar, public, &random);
    Ok(KeyPair::Ecdsa(curve, pair.map_err(rejected)?))
}

/// `d` modulo `prime - 1`, as long as the prime, for an odd prime. Bit by bit, which is quick enough for once.
fn exponent(d: &[u8], prime: &[u8]) -> Vec<u8> {
    let mut modulus = prime.to_vec();
    if let Some(last) = modulus.last_mut() {
        *last &= !1;
    }
    let mut rest = vec![0; modulus.len()];
    for byte in d {
        for bit in (0..8).rev() {
            let overflow = shift_in(&mut rest, (byte >> bit) & 1);
            if overflow || rest >= modulus {
                subtract(&mut rest, &modulus);
            }
        }
    }
    rest
}

/// Doubles a number and adds a bit; says whether the highest bit fell out.
fn shift_in(number: &mut [u8], bit: u8) -> bool {
    let carry = number.iter_mut().rev().fold(bit, |carry, byte| {
        let out = *byte >> 7;
        *byte = *byte << 1 | carry;
        out
    });
    carry == 1
}

/// Subtracts a number that is as long; what was borrowed beyond the highest byte fell out of it before.
fn subtract(number: &mut [u8], other: &[u8]) {
    let mut borrow = false;
    for (byte, other) in number.iter_mut().zip(other).rev() {
        let (difference, first) = byte.overflowing_sub(*other);
        let (difference, second) = difference.overflowing_sub(u8::from(borrow));
        *byte = difference;
        borrow = first || second;
    }
}

/// PKCS#8 says itself what is in it, but ring wants to be asked for one kind at a time.
fn pkcs8(der: &[u8]) -> Result<KeyPair, KeyError> {
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(KeyPair::Ed25519(pair));
    }
    for curve in [Curve::P256, Curve::P384] {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.signing(), der, &SystemRandom::new()) {
            return Ok(KeyPair::Ecdsa(curve, pair));
        }
    }
    RsaKeyPair::from_pkcs8(der).map(KeyPair::Rsa).map_err(rsa_rejected)
}

/// SEC1 is what is inside of PKCS#8; the curve, which may be missing from it, is found by trying.
fn sec1(der: &[u8]) -> Result<KeyPair, KeyError> {
    for (curve, oid) in [(Curve::P256, PRIME256V1), (Curve::P384, SECP384R1)] {
        let algorithm = sequence(&[EC_PUBLIC_KEY, oid]);
        // Version 0.
        let wrapped = sequence(&[&[0x02, 0x01, 0x00], &algorithm, &tagged(0x04, der)]);
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.signing(), &wrapped, &SystemRandom::new()) {
            return Ok(KeyPair::Ecdsa(curve, pair));
        }
    }
    Err(KeyError::Unsupported("an elliptic curve key of another curve, or without its public half".to_owned()))
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tagged(0x30, &parts.concat())
}

/// DER: a tag, a length, the content. Files of keys need two bytes for lengths at most.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut der = match (high, low) {
        (0, 0..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    der.extend_from_slice(content);
    der
}

fn rejected(error: KeyRejected) -> KeyError {
    KeyError::Broken(error.to_string())
}

/// Most of what ring refuses as an RSA key is of an unusual size.
fn rsa_rejected(error: KeyRejected) -> KeyError {
    match error.to_string().as_str() {
        "TooSmall" | "TooLarge" | "PrivateModulusLenNotMultipleOf512Bits" => {
            KeyError::Unsupported(format!("an RSA key of another size ({error})"))
        }
        _ => rejected(error),
    }
}

/// A block of PEM (RFC 7468).
struct Block<'a> {
    /// What is between `BEGIN` and the dashes.
    label: &'a str,
    /// The lines between the two marks.
    lines: &'a str,
}

impl<'a> Block<'a> {
    /// The first private key; others' parameters may stand before it.
    fn find(text: &'a str) -> Option<Self> {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once("-----BEGIN ") {
            let (label, after) = after.split_once("-----")?;
            let (lines, after) = after.split_once("-----END ")?;
            if label.ends_with("PRIVATE KEY") {
                return Some(Self { label, lines });
            }
            rest = after;
        }
        None
    }

    /// Whether its headers name a cipher, as OpenSSL wrote them for decades.
    fn is_encrypted(&self) -> bool {
        self.lines.contains("Proc-Type: 4,ENCRYPTED")
    }

    fn decode(&self) -> Result<Vec<u8>, KeyError> {
        let text: String = self.lines.split_ascii_whitespace().collect();
        STANDARD.decode(text).map_err(|_| KeyError::Broken("it is not base64".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::super::key::{PrivateKey, RsaDigest};
    use super::super::wire::take_string;
    use super::*;

    #[test]
    fn exponents_are_remainders() {
        for (d, prime, expected) in [
            (&[0x12, 0x34][..], &[0xfb][..], &[160][..]),
            (&[5], &[0xfb], &[5]),
            (&[0xff; 3], &[0xff, 0xf1], &[0x0f, 0xff]),
            (&[], &[3], &[0]),
            // The prime minus one itself.
            (&[0xff, 0xf0], &[0xff, 0xf1], &[0, 0]),
        ] {
            assert_eq!(exponent(d, prime), expected, "{d:?} {prime:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_said() {
        let block = |label: &str, text: &str| format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        let broken = |reason: &str| KeyError::Broken(reason.to_owned());
        let proc_type = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA";
        for (text, expected) in [
            (String::new(), KeyError::NotAKey),
            ("ssh-ed25519 AAAA me".to_owned(), KeyError::NotAKey),
            (block("CERTIFICATE", "AAAA"), KeyError::NotAKey),
            ("-----BEGIN RSA PRIVATE KEY-----\nAAAA".to_owned(), KeyError::NotAKey),
            (block("ENCRYPTED PRIVATE KEY", "AAAA"), KeyError::Encrypted),
            (block("RSA PRIVATE KEY", proc_type), KeyError::Encrypted),
            (block("RSA PRIVATE KEY", "!"), broken("it is not base64")),
            (block("PRIVATE KEY", "AAAA"), broken("InvalidEncoding")),
            (block("DSA PRIVATE KEY", "AAAA"), KeyError::Unsupported("a file of `DSA PRIVATE KEY`".to_owned())),
        ] {
            assert_eq!(parse(text.as_bytes()).err(), Some(expected), "{text}");
        }
        assert!(matches!(parse(block("OPENSSH PRIVATE KEY", "AAAA").as_bytes()), Err(KeyError::Broken(_))));
        assert!(matches!(parse(block("EC PRIVATE KEY", "AAAA").as_bytes()), Err(KeyError::Unsupported(_))));
        assert_eq!(parse(&[0xff]).err(), Some(KeyError::NotAKey));
    }

    /// Makes a key with OpenSSH's program; `None` without one.
    fn keygen(path: &Path, args: &[&str]) -> Option<()> {
        let Ok(output) = Command::new("ssh-keygen").args(["-q", "-f"]).arg(path).args(args).output() else {
            skip();
            return None;
        };
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Some(())
    }

    #[expect(clippy::print_stderr, reason = "whoever runs the tests has to see what was left out")]
    fn skip() {
        eprintln!("skipped: there is no ssh-keygen");
    }

    /// The public key beside the private one, as the protocol writes it.
    fn public_of(path: &Path) -> Vec<u8> {
        let text = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        STANDARD.decode(text.split(' ').nth(1).unwrap()).unwrap()
    }

    /// One key in 256 is so; made for this test.
    #[test]
    fn a_private_number_may_begin_with_zeros() {
        let text = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAaAAAABNlY2RzYS
1zaGEyLW5pc3RwMjU2AAAACG5pc3RwMjU2AAAAQQR40HQCHMnEi1vqlf275AV1ILDLphom
eP1GR63JTFhj2iWF2Nxjzvdi09ulaKphvd7e8E76WX0TTlEESGyeop9rAAAAoBIt0BwSLd
AcAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHjQdAIcycSLW+qV
/bvkBXUgsMumGiZ4/UZHrclMWGPaJYXY3GPO92LT26VoqmG93t7wTvpZfRNOUQRIbJ6in2
sAAAAfKt1MEMhUzTep0T8TpDVZV2MsB6RB6nqdcNX1C5hspAAAAAVzaG9ydAECAwQ=
-----END OPENSSH PRIVATE KEY-----";
        verify(&PrivateKey::parse(text.as_bytes()).unwrap());
    }

    #[test]
    fn every_cut_of_a_file_of_openssh_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        for (idx, kind) in ["ed25519", "ecdsa", "rsa"].into_iter().enumerate() {
            let path = dir.path().join(idx.to_string());
            let Some(()) = keygen(&path, &["-N", "", "-C", "", "-t", kind]) else { return };
            let text = std::fs::read_to_string(&path).unwrap();
            let file = Block::find(&text).unwrap().decode().unwrap();
            assert!(openssh(&file).is_ok());
            // The length of the private half says where the file has to end.
            for length in 0..file.len() {
                assert!(matches!(openssh(&file[..length]), Err(KeyError::Broken(_))), "{kind} {length}");
            }
        }
    }

    #[test]
    fn keys_of_openssh_in_all_formats_are_read_and_sign() {
        let dir = tempfile::tempdir().unwrap();
        let kinds =
            [&["ed25519"][..], &["ecdsa", "-b256"], &["ecdsa", "-b384"], &["rsa", "-b2048"], &["rsa", "-b3072"]];
        for (idx, kind) in kinds.into_iter().enumerate() {
            for format in ["RFC4716", "PKCS8", "PEM"] {
                let path = dir.path().join(format!("{idx}-{format}"));
                let is_own = format == "RFC4716";
                // OpenSSH writes Ed25519 keys in its own format only.
                if kind == ["ed25519"] && !is_own {
                    continue;
                }
                let args = [&["-N", "", "-m", format, "-t"], kind].concat();
                let Some(()) = keygen(&path, &args) else { return };
                let key = PrivateKey::parse(&std::fs::read(&path).unwrap()).unwrap();
                assert_eq!(key.public(), public_of(&path), "{args:?}");
                verify(&key);
            }
        }
    }

    /// Checks signatures by the public half of the key.
    fn verify(key: &PrivateKey) {
        use ring::signature::*;
        let mut public = key.public();
        let kind = take_string(&mut public).unwrap();
        let digests: &[_] = if kind == b"ssh-rsa" { &[RsaDigest::Sha256, RsaDigest::Sha512] } else { &[] };
        assert_eq!(key.sign(b"data", None).is_some(), digests.is_empty());
        for digest in digests.iter().copied().map(Some).chain(digests.is_empty().then_some(None)) {
            let signed = key.sign(b"data", digest).unwrap();
            let mut rest = signed.as_slice();
            let algorithm = take_string(&mut rest).unwrap();
            let mut signature = take_string(&mut rest).unwrap();
            let mut public = public;
            match algorithm {
                b"ssh-ed25519" => UnparsedPublicKey::new(&ED25519, take_string(&mut public).unwrap())
                    .verify(b"data", signature)
                    .unwrap(),
                b"rsa-sha2-256" | b"rsa-sha2-512" => {
                    let (e, n) = (take_string(&mut public).unwrap(), take_string(&mut public).unwrap());
                    let n = n.strip_prefix(&[0]).unwrap_or(n);
                    let parameters = match digest {
                        Some(RsaDigest::Sha512) => &RSA_PKCS1_2048_8192_SHA512,
                        _ => &RSA_PKCS1_2048_8192_SHA256,
                    };
                    assert_eq!(algorithm.ends_with(b"512"), digest == Some(RsaDigest::Sha512));
                    RsaPublicKeyComponents { n, e }.verify(parameters, b"data", signature).unwrap();
                }
                _ => {
                    let curve = take_string(&mut public).unwrap();
                    let (parameters, size) = match curve {
                        b"nistp256" => (&ECDSA_P256_SHA256_FIXED, 32),
                        _ => (&ECDSA_P384_SHA384_FIXED, 48),
                    };
                    let mut fixed = Vec::new();
                    for _ in 0..2 {
                        let number = take_string(&mut signature).unwrap();
                        let number = number.strip_prefix(&[0]).unwrap_or(number);
                        fixed.extend(std::iter::repeat_n(0, size - number.len()));
                        fixed.extend_from_slice(number);
                    }
                    let point = take_string(&mut public).unwrap();
                    UnparsedPublicKey::new(parameters, point).verify(b"data", &fixed).unwrap();
                }
            }
        }
    }

    #[test]
    fn keys_that_need_a_passphrase_or_are_unusual_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let parse_new = |name: &str, args: &[&str]| {
            let path = dir.path().join(name);
            keygen(&path, args).map(|()| parse(&std::fs::read(path).unwrap()).err().unwrap())
        };
        for format in ["RFC4716", "PKCS8", "PEM"] {
            let error = parse_new(format, &["-N", "secret", "-m", format, "-t", "ecdsa"]);
            let Some(error) = error else { return };
            assert_eq!(error, KeyError::Encrypted, "{format}");
        }
        for (name, args) in [("p521", &["-t", "ecdsa", "-b521"]), ("small", &["-t", "rsa", "-b1024"])] {
            for format in ["RFC4716", "PEM"] {
                let error = parse_new(&format!("{name}-{format}"), &[&["-N", "", "-m", format], &args[..]].concat());
                // A number of P-521 that happens to be short is refused before its curve is.
                let is_broken = name == "p521" && matches!(error, Some(KeyError::Broken(_)));
                assert!(is_broken || matches!(error, Some(KeyError::Unsupported(_))), "{name} {format}: {error:?}");
            }
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = super::super::key::testing::ed25519();
        assert_eq!(format!("{key:?}"), "PrivateKey(****)");
    }
}
