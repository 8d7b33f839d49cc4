//! The encoding that ssh's keys and its agents share (RFC 4251, §5), and whole messages of an agent's connection.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Longer messages end the connection; OpenSSH's agent draws the same line.
const MOST_MESSAGE_BYTES: u32 = 256 * 1024;

/// Appends a `string`: its length as four bytes, then the bytes.
pub(super) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    // Whatever we write is part of a message or of a key file, both of which are far shorter than four gigabytes.
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends an `mpint` that is not negative, from its big-endian bytes: no zeros in front but the one that keeps the
/// highest bit from meaning a sign.
pub(super) fn put_mpint(out: &mut Vec<u8>, bytes: &[u8]) {
    let significant = bytes.iter().position(|byte| *byte != 0).map_or(&[][..], |start| &bytes[start..]);
    let needs_zero = significant.first().is_some_and(|byte| byte & 0x80 != 0);
    let mut number = vec![0; usize::from(needs_zero)];
    number.extend_from_slice(significant);
    put_string(out, &number);
}

/// Takes a `string` off the front; `None` when there is no whole one.
pub(super) fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_u32(rest)?;
    let (string, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(string)
}

/// Takes a number of four bytes off the front.
pub(super) fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_be_bytes(*number))
}

/// The next message without its length: a type and what belongs to it, never empty. `None` at the end of the stream.
pub(super) async fn read_message(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    };
    let size_bytes = u32::from_be_bytes(length);
    if size_bytes == 0 || size_bytes > MOST_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("agent message of {size_bytes} bytes")));
    }
    let mut message = vec![0; size_bytes as usize];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Sends a message with its length in front.
pub(super) async fn write_message(stream: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    let mut framed = Vec::with_capacity(4 + message.len());
    put_string(&mut framed, message);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_needless_zeros_and_no_sign() {
        let cases: [(&[u8], &[u8]); 5] = [
            (&[], &[0, 0, 0, 0]),
            (&[0, 0], &[0, 0, 0, 0]),
            (&[0, 0x7f], &[0, 0, 0, 1, 0x7f]),
            (&[0x80], &[0, 0, 0, 2, 0, 0x80]),
            (&[0, 0, 1, 2], &[0, 0, 0, 2, 1, 2]),
        ];
        for (bytes, expected) in cases {
            let mut out = Vec::new();
            put_mpint(&mut out, bytes);
            assert_eq!(out, expected, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        let mut whole = Vec::new();
        put_string(&mut whole, b"key");
        assert_eq!(take_string(&mut whole.as_slice()), Some(&b"key"[..]));
        for end in 0..whole.len() {
            assert_eq!(take_string(&mut &whole[..end]), None, "{end}");
        }
        assert_eq!(take_string(&mut &[0xff; 8][..]), None);
    }
}
