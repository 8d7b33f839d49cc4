use std::collections::HashMap;
use std::io::Read;

use super::*;

/// Half of it random, half of it compressible, the same on every run.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if bytes.len() >> 16 & 1 == 0 {
            bytes.extend_from_slice(&state.to_le_bytes());
        } else {
            bytes.extend_from_slice(format!("line {} of a log\n", state % 1000).as_bytes());
        }
    }
    bytes.truncate(len);
    bytes
}

/// A sink whose bytes can be looked at afterwards.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const CODECS: [PieceCodec; 2] = [PieceCodec::Gzip { level: 4 }, PieceCodec::Zstd { level: 1 }];

fn pack(raw: &[u8], step: usize, codecs: &[PieceCodec], pieces: Arc<dyn PieceSource>) -> (PackedStream, Vec<Vec<u8>>) {
    let buffers: Vec<Shared> = codecs.iter().map(|_| Shared::default()).collect();
    let sinks = codecs.iter().zip(&buffers);
    let blobs = sinks.map(|(codec, buffer)| (*codec, Box::new(DigestSink::new(buffer.clone())) as Box<dyn BlobSink>));
    let plain = Box::new(DigestSink::discarding());
    let mut stream = LayerStream::new(StreamOptions { plain, blobs: blobs.collect(), pieces }).expect("valid levels");
    raw.chunks(step).for_each(|chunk| stream.push(chunk).expect("in memory"));
    let packed = stream.finish().expect("in memory");
    (packed, buffers.into_iter().map(|buffer| std::mem::take(&mut *buffer.0.lock().expect("not poisoned"))).collect())
}

fn decompressed(blob: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    crate::layer::decompress(blob).expect("opens").1.read_to_end(&mut raw).expect("valid");
    raw
}

#[test]
fn every_length_comes_back() {
    for len in [0, 1, 1000, 300_000, 1 << 20, 5_000_001] {
        let raw = sample(len);
        let (packed, blobs) = pack(&raw, 100_000, &CODECS, Arc::new(NoPieces));
        assert_eq!(packed.diff_id.digest(), &Digest::of(&raw), "{len}");
        assert_eq!(packed.tar_bytes, len as u64);
        for (blob, bytes) in packed.blobs.iter().zip(&blobs) {
            assert_eq!(decompressed(bytes), raw, "{len} {:?}", blob.codec);
            assert_eq!((&blob.digest, blob.size_bytes), (&Digest::of(bytes), bytes.len() as u64));
            let mut end = 0;
            for piece in &blob.pieces {
                assert_eq!(piece.offset_bytes, end);
                end += piece.len_bytes;
            }
            assert_eq!(end, blob.size_bytes);
        }
        let (plain_only, _) = pack(&raw, 77_777, &[], Arc::new(NoPieces));
        assert_eq!(plain_only.diff_id, packed.diff_id);
    }
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_steps() {
    let raw = sample(9_000_000);
    let on_threads = |n: usize, step: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool");
        pool.install(|| pack(&raw, step, &CODECS, Arc::new(NoPieces)))
    };
    let single = on_threads(1, 4096);
    assert!(on_threads(5, 1_000_003) == single);
    assert!(pack(&raw, raw.len(), &CODECS, Arc::new(NoPieces)) == single);
}

/// Knows the pieces of one blob.
struct Known(HashMap<[u8; 32], Vec<u8>>);

impl Known {
    fn of(blob: &PackedBlob, bytes: &[u8]) -> Self {
        let range = |piece: &PieceRef| piece.offset_bytes as usize..(piece.offset_bytes + piece.len_bytes) as usize;
        Self(blob.pieces.iter().map(|piece| (piece.raw, bytes[range(piece)].to_vec())).collect())
    }
}

impl PieceSource for Known {
    fn find(&self, _codec: PieceCodec, raw: &[u8; 32]) -> Option<Vec<u8>> {
        self.0.get(raw).cloned()
    }
}

#[test]
fn known_pieces_are_not_compressed_again() {
    let mut raw = sample(12_000_000);
    let (first, blobs) = pack(&raw, 1 << 20, &CODECS[..1], Arc::new(NoPieces));
    let known = Arc::new(Known::of(&first.blobs[0], &blobs[0]));
    raw[6_000_000] ^= 1;
    let (second, again) = pack(&raw, 1 << 20, &CODECS[..1], known);
    assert_eq!(decompressed(&again[0]), raw);
    let n_new = second.blobs[0].pieces.iter().filter(|piece| !piece.was_known).count();
    assert!((1..=2).contains(&n_new), "{n_new} of {}", second.blobs[0].pieces.len());
    let (fresh, _) = pack(&raw, 1 << 20, &CODECS[..1], Arc::new(NoPieces));
    assert_eq!(fresh.blobs[0].digest, second.blobs[0].digest);
}

#[test]
fn a_damaged_piece_store_does_not_make_wrong_layers() {
    struct Wrong;
    impl PieceSource for Wrong {
        fn find(&self, _codec: PieceCodec, _raw: &[u8; 32]) -> Option<Vec<u8>> {
            Some(b"anything".to_vec())
        }
    }
    let raw = sample(2_000_000);
    let (_, blobs) = pack(&raw, 1 << 20, &CODECS, Arc::new(Wrong));
    assert!(blobs.iter().all(|blob| decompressed(blob) == raw));
}

/// Fails after some bytes.
struct Full(usize);

impl BlobSink for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<Digest> {
        Ok(Digest::of(b""))
    }
}

#[test]
fn full_disks_are_reported_and_leave_no_threads() {
    let raw = sample(20_000_000);
    let discarding = || Box::new(DigestSink::discarding()) as Box<dyn BlobSink>;
    for (plain, blob) in
        [(Box::new(Full(1000)) as Box<dyn BlobSink>, discarding()), (discarding(), Box::new(Full(1000)))]
    {
        let blobs = vec![(CODECS[1], blob)];
        let mut stream = LayerStream::new(StreamOptions { plain, blobs, pieces: Arc::new(NoPieces) }).expect("levels");
        let pushed = raw.chunks(1 << 20).try_for_each(|chunk| stream.push(chunk));
        let outcome = pushed.and_then(|()| stream.finish().map(drop));
        assert!(matches!(outcome, Err(StreamError::Sink { .. })), "{outcome:?}");
    }
}
