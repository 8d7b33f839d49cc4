//! OpenSSH's own format of private keys (its PROTOCOL.key): the fields of the first key in a file.
//!
//! The numbers in it are `mpint`s, and so are shorter than the curve when they begin with zeros, which one ECDSA key
//! in 256 does.

use super::key::KeyError;
use super::wire::{take_string, take_u32};

/// What every file begins with, in base64's clear.
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// The fields of a private key without a passphrase; numbers are big-endian, without zeros in front.
pub(super) enum Fields<'a> {
    Ed25519 {
        public: &'a [u8],
        seed: &'a [u8],
    },
    Ecdsa {
        curve: &'a [u8],
        public: &'a [u8],
        private: &'a [u8],
    },
    Rsa {
        n: &'a [u8],
        e: &'a [u8],
        d: &'a [u8],
        iqmp: &'a [u8],
        p: &'a [u8],
        q: &'a [u8],
    },
    /// A key of another algorithm, by its name.
    Other(&'a [u8]),
}

/// Reads what base64 held.
pub(super) fn fields(file: &[u8]) -> Result<Fields<'_>, KeyError> {
    let broken = |what: &str| KeyError::Broken(what.to_owned());
    let mut rest = file.strip_prefix(MAGIC).ok_or_else(|| broken("it is no key of OpenSSH's first format"))?;
    let (key, is_clear) = container(&mut rest).ok_or_else(|| broken("it ends too early"))?;
    if !is_clear {
        return Err(KeyError::Encrypted);
    }
    private(key).ok_or_else(|| broken("its fields are not those of its algorithm"))
}

/// The private half of a file, and whether it can be read without a passphrase.
fn container<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], bool)> {
    let (cipher, _derivation, _options) = (take_string(rest)?, take_string(rest)?, take_string(rest)?);
    let _keys = take_u32(rest)?;
    let _public = take_string(rest)?;
    Some((take_string(rest)?, cipher == b"none"))
}

fn private(mut key: &[u8]) -> Option<Fields<'_>> {
    let rest = &mut key;
    // The same number twice, from which a wrong passphrase would be known.
    if take_u32(rest)? != take_u32(rest)? {
        return None;
    }
    Some(match take_string(rest)? {
        b"ssh-ed25519" => {
            let (public, pair) = (take_string(rest)?, take_string(rest)?);
            Fields::Ed25519 { public, seed: pair.strip_suffix(public)? }
        }
        b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" => {
            Fields::Ecdsa { curve: take_string(rest)?, public: take_string(rest)?, private: take_number(rest)? }
        }
        b"ssh-rsa" => Fields::Rsa {
            n: take_number(rest)?,
            e: take_number(rest)?,
            d: take_number(rest)?,
            iqmp: take_number(rest)?,
            p: take_number(rest)?,
            q: take_number(rest)?,
        },
        other => Fields::Other(other),
    })
}

/// An `mpint` above zero.
fn take_number<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let number = take_string(rest)?;
    if number.first()? & 0x80 != 0 {
        return None;
    }
    let start = number.iter().position(|byte| *byte != 0)?;
    number.get(start..)
}
