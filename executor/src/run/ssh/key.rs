//! Private keys in memory: what they are called in public, and what they sign.
//!
//! Signatures come from ring, which takes the same time whatever the key: a step may ask for as many as it likes and
//! measure each.

use std::fmt;

use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding, RsaKeyPair,
};

use super::key_file;
use super::wire::{put_mpint, put_string};

const ED25519: &[u8] = b"ssh-ed25519";
const RSA: &[u8] = b"ssh-rsa";

/// A private key without a passphrase, for [`AgentStore::with_keys`](super::AgentStore::with_keys). Redacted in `Debug`;
/// it cannot be shown, copied or written.
pub struct PrivateKey {
    pair: KeyPair,
    /// As the protocol names it (RFC 4253 §6.6, RFC 5656 §3.1, RFC 8709 §4).
    public: Vec<u8>,
}

/// Why a file is no key that we can use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Somebody would have to be asked for it.
    #[error("this private key is passphrase protected")]
    Encrypted,
    /// There is no private key in the text.
    #[error("no key found")]
    NotAKey,
    /// There is one of a kind, or of a size, that we do not sign with.
    #[error(
        "unsupported key: {0}; supported are Ed25519, ECDSA with P-256 or P-384, and RSA with 2048, 3072 or 4096 bits"
    )]
    Unsupported(String),
    /// There is one, and it is broken.
    #[error("broken key: {0}")]
    Broken(String),
}

/// The digest of an RSA signature. That of the old `ssh-rsa` signatures, SHA-1, is not made any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RsaDigest {
    Sha256,
    Sha512,
}

/// A curve of ECDSA keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

/// The halves of a key by kind.
pub(super) enum KeyPair {
    Ed25519(Ed25519KeyPair),
    Ecdsa(Curve, EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl PrivateKey {
    /// Reads the text of a key file: OpenSSH's format, or PEM of PKCS#1, PKCS#8 or SEC1.
    ///
    /// # Errors
    /// See [`KeyError`]. No part of the text is in any of them.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        Ok(Self::new(key_file::parse(text)?))
    }

    fn new(pair: KeyPair) -> Self {
        let mut public = Vec::new();
        match &pair {
            KeyPair::Ed25519(pair) => {
                put_string(&mut public, ED25519);
                put_string(&mut public, pair.public_key().as_ref());
            }
            KeyPair::Ecdsa(curve, pair) => {
                put_string(&mut public, curve.algorithm());
                put_string(&mut public, curve.name());
                put_string(&mut public, pair.public_key().as_ref());
            }
            KeyPair::Rsa(pair) => {
                let numbers: PublicKeyComponents<Vec<u8>> = pair.public().into();
                put_string(&mut public, RSA);
                put_mpint(&mut public, &numbers.e);
                put_mpint(&mut public, &numbers.n);
            }
        }
        Self { pair, public }
    }

    /// The public key as the protocol writes it.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    /// A signature of `data` as the protocol writes it: its algorithm, then the bytes. `digest` is for RSA keys.
    ///
    /// `None` when an RSA key has no digest, or there is no randomness.
    pub(super) fn sign(&self, data: &[u8], digest: Option<RsaDigest>) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let mut signed = Vec::new();
        match &self.pair {
            KeyPair::Ed25519(pair) => {
                put_string(&mut signed, ED25519);
                put_string(&mut signed, pair.sign(data).as_ref());
            }
            KeyPair::Ecdsa(curve, pair) => {
                let signature = pair.sign(&random, data).ok()?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                let mut numbers = Vec::new();
                put_mpint(&mut numbers, r);
                put_mpint(&mut numbers, s);
                put_string(&mut signed, curve.algorithm());
                put_string(&mut signed, &numbers);
            }
            KeyPair::Rsa(pair) => {
                let digest = digest?;
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(digest.encoding(), &random, data, &mut signature).ok()?;
                put_string(&mut signed, digest.algorithm());
                put_string(&mut signed, &signature);
            }
        }
        Some(signed)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(****)")
    }
}

impl RsaDigest {
    fn algorithm(self) -> &'static [u8] {
        match self {
            Self::Sha256 => b"rsa-sha2-256",
            Self::Sha512 => b"rsa-sha2-512",
        }
    }

    fn encoding(self) -> &'static dyn RsaEncoding {
        match self {
            Self::Sha256 => &RSA_PKCS1_SHA256,
            Self::Sha512 => &RSA_PKCS1_SHA512,
        }
    }
}

impl Curve {
    fn name(self) -> &'static [u8] {
        match self {
            Self::P256 => b"nistp256",
            Self::P384 => b"nistp384",
        }
    }

    fn algorithm(self) -> &'static [u8] {
        match self {
            Self::P256 => b"ecdsa-sha2-nistp256",
            Self::P384 => b"ecdsa-sha2-nistp384",
        }
    }

    /// How long a private number is; a public point is twice as long, and a byte.
    pub(super) fn scalar_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    /// Signs with the digest that ssh gives to the curve; the two numbers come one after the other.
    pub(super) fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        }
    }
}

/// Keys for the tests of those who serve them.
#[cfg(test)]
pub(in crate::run) mod testing {
    use super::*;

    /// A new key.
    pub(in crate::run) fn ed25519() -> PrivateKey {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        PrivateKey::new(KeyPair::Ed25519(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()))
    }
}
