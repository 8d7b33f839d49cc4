//! The agent protocol as far as a build needs it (draft-ietf-sshm-ssh-agent): which keys are there, and sign this.
//!
//! Adding, removing and locking are refused whoever the agent is: a step may use keys and not change them.

use super::key::{PrivateKey, RsaDigest};
use super::wire::{put_string, take_string, take_u32};

/// The most general answer of an agent: no.
pub(super) const FAILURE: u8 = 5;
/// Which keys are there?
pub(super) const REQUEST_IDENTITIES: u8 = 11;
/// These.
pub(super) const IDENTITIES_ANSWER: u8 = 12;
/// Sign this.
pub(super) const SIGN_REQUEST: u8 = 13;
/// Here.
pub(super) const SIGN_RESPONSE: u8 = 14;

/// Flags of [`SIGN_REQUEST`] that choose the digest of an RSA signature.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// Whether a step may send this request to an agent: it uses keys and changes nothing.
pub(super) fn is_permitted(request: &[u8]) -> bool {
    matches!(request.first(), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)))
}

/// Our answer to a request, of an agent that holds `keys`. Signing takes up to some milliseconds of processor time.
pub(super) fn answer(request: &[u8], keys: &[PrivateKey]) -> Vec<u8> {
    match request.split_first() {
        Some((&REQUEST_IDENTITIES, [])) => identities(keys),
        Some((&SIGN_REQUEST, content)) => sign(content, keys).unwrap_or_else(|| vec![FAILURE]),
        _ => vec![FAILURE],
    }
}

fn identities(keys: &[PrivateKey]) -> Vec<u8> {
    let mut answer = vec![IDENTITIES_ANSWER];
    answer.extend_from_slice(&(keys.len() as u32).to_be_bytes());
    for key in keys {
        put_string(&mut answer, key.public());
        // A key's comment tells who made it where, which is nothing to a build.
        put_string(&mut answer, b"");
    }
    answer
}

/// `None` for what is no request, for a key that is not here, and for a signature that the key cannot make.
fn sign(mut content: &[u8], keys: &[PrivateKey]) -> Option<Vec<u8>> {
    let public = take_string(&mut content)?;
    let data = take_string(&mut content)?;
    let flags = take_u32(&mut content)?;
    let key = keys.iter().find(|key| key.public() == public).filter(|_| content.is_empty())?;
    let digest = match flags {
        RSA_SHA2_256 => Some(RsaDigest::Sha256),
        // Both: the stronger one, as OpenSSH's agent has it.
        _ if flags & RSA_SHA2_512 != 0 => Some(RsaDigest::Sha512),
        _ => None,
    };
    let signature = key.sign(data, digest)?;
    let mut answer = vec![SIGN_RESPONSE];
    put_string(&mut answer, &signature);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::super::key::testing;
    use super::*;

    fn sign_request(public: &[u8], data: &[u8], flags: u32) -> Vec<u8> {
        let mut request = vec![SIGN_REQUEST];
        put_string(&mut request, public);
        put_string(&mut request, data);
        request.extend_from_slice(&flags.to_be_bytes());
        request
    }

    #[test]
    fn an_agent_lists_its_keys_and_signs_with_them() {
        let keys = [testing::ed25519(), testing::ed25519()];
        let listed = answer(&[REQUEST_IDENTITIES], &keys);
        let (kind, mut rest) = listed.split_first().unwrap();
        assert_eq!((*kind, take_u32(&mut rest)), (IDENTITIES_ANSWER, Some(2)));
        for key in &keys {
            assert_eq!(take_string(&mut rest), Some(key.public()));
            assert_eq!(take_string(&mut rest), Some(&b""[..]));
        }
        assert_eq!(rest, b"");

        // Flags for RSA mean nothing to other keys.
        for flags in [0, RSA_SHA2_512] {
            let signed = answer(&sign_request(keys[1].public(), b"challenge", flags), &keys);
            let (kind, mut rest) = signed.split_first().unwrap();
            assert_eq!(*kind, SIGN_RESPONSE);
            let mut signature = take_string(&mut rest).unwrap();
            assert_eq!(take_string(&mut signature), Some(&b"ssh-ed25519"[..]));
            let signature = take_string(&mut signature).unwrap();
            let public = &keys[1].public()[keys[1].public().len() - 32..];
            UnparsedPublicKey::new(&ED25519, public).verify(b"challenge", signature).unwrap();
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let keys = [testing::ed25519()];
        let good = sign_request(keys[0].public(), b"x", 0);
        assert_ne!(answer(&good, &keys), [FAILURE]);
        for end in 1..good.len() {
            assert_eq!(answer(&good[..end], &keys), [FAILURE], "{end}");
        }
        let longer = [good.as_slice(), &[0]].concat();
        let foreign = sign_request(testing::ed25519().public(), b"x", 0);
        for request in [&longer[..], &foreign, &[], &[REQUEST_IDENTITIES, 0], &[17], &[18], &[19], &[22], &[25], &[27]]
        {
            assert_eq!(answer(request, &keys), [FAILURE], "{request:?}");
        }
    }

    #[test]
    fn only_using_keys_is_permitted() {
        let permitted: Vec<u8> = (0..=255).filter(|kind| is_permitted(&[*kind, 1])).collect();
        assert_eq!(permitted, [REQUEST_IDENTITIES, SIGN_REQUEST]);
        assert!(!is_permitted(&[]));
    }
}
