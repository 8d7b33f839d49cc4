//! The tar form: the layer's bytes straight from the sources, in one pass.

use std::io::{Read, Write};

use oci::layer::{Entry, EntryKind, LayerError, TarWriter, Xattr};
use solver::OpError;

use super::Setting;
use super::content::{FileFacts, Written};
use super::draft::{Attributes, Body, Draft, InodeId, InodeKind, InodeXattrs};
use super::order::{Listed, Listing};
use super::read_ahead::{FileReader, ReadAhead};
use crate::context::source::CAPABILITY_XATTR;

/// Takes the entries of a layer tar, in order.
pub trait EntrySink {
    /// Takes an entry whose content, if it is a regular file, is read from `content`: exactly as much as it says.
    ///
    /// # Errors
    /// Any [`LayerError`]; the tar is broken then.
    fn append(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> Result<(), LayerError>;

    /// Takes an entry whose whole content is at hand.
    ///
    /// # Errors
    /// Any [`LayerError`]; the tar is broken then.
    fn append_bytes(&mut self, entry: &Entry<'_>, content: &[u8]) -> Result<(), LayerError>;
}

impl<W: Write> EntrySink for TarWriter<W> {
    fn append(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> Result<(), LayerError> {
        TarWriter::append(self, entry, content)
    }

    fn append_bytes(&mut self, entry: &Entry<'_>, content: &[u8]) -> Result<(), LayerError> {
        TarWriter::append_bytes(self, entry, content)
    }
}

/// Writes the layer of `draft` into `sink`, without an end-of-archive marker.
///
/// Gives what became known of the files.
pub(super) fn write(
    draft: &Draft,
    listing: &Listing,
    setting: &Setting<'_>,
    sink: &mut dyn EntrySink,
) -> Result<Written, OpError> {
    let mut written = Written::new(draft);
    let mut ahead = ReadAhead::new(sources(draft, listing));
    for (path, listed) in listing.iter() {
        setting.check_cancelled()?;
        match listed {
            Listed::Dir(id) => {
                let dir = draft.dir(id);
                let xattrs = capability(&dir.xattrs);
                put(sink, entry(path, EntryKind::Directory, &dir.attributes, &xattrs), &[])?;
            }
            Listed::First(id) => {
                if let Some(facts) = write_inode(draft, id, path, sink, &mut ahead)? {
                    written.set(id, facts);
                }
            }
            Listed::Again(id, first) => {
                let kind = EntryKind::Hardlink { target: listing.path(first) };
                let xattrs = of_value(written.capability(id));
                put(sink, entry(path, kind, &draft.inode(id).attributes, &xattrs), &[])?;
            }
            Listed::Whiteout => put(sink, Entry::whiteout(path), &[])?,
        }
    }
    Ok(written)
}

/// The files whose bytes come from sources, in the order in which they are written.
fn sources<'a>(draft: &'a Draft, listing: &'a Listing) -> impl Iterator<Item = Body> + 'a {
    listing.iter().filter_map(|(_, listed)| match listed {
        Listed::First(id) => match &draft.inode(id).kind {
            InodeKind::File(body @ Body::Source { .. }) => Some(body.clone()),
            _ => None,
        },
        _ => None,
    })
}

fn write_inode(
    draft: &Draft,
    id: InodeId,
    path: &[u8],
    sink: &mut dyn EntrySink,
    ahead: &mut ReadAhead<impl Iterator<Item = Body>>,
) -> Result<Option<FileFacts>, OpError> {
    let inode = draft.inode(id);
    let given = match &inode.xattrs {
        InodeXattrs::Given(xattrs) => capability(xattrs),
        InodeXattrs::OfSource(..) => Vec::new(),
    };
    let entry = entry(path, kind_of(&inode.kind), &inode.attributes, &given);
    let InodeKind::File(body) = &inode.kind else {
        put(sink, entry, &[])?;
        return Ok(None);
    };
    let capability = given.first().map(|xattr| xattr.value.clone());
    Ok(Some(match body {
        Body::Bytes(bytes) => {
            put(sink, entry, bytes)?;
            FileFacts { digest: *blake3::hash(bytes).as_bytes(), capability }
        }
        Body::Staged { path: staged, digest, .. } => {
            let cannot = |e| OpError::environment(format!("cannot open `{}`: {e}", staged.display()));
            let mut file = std::fs::File::open(staged).map_err(cannot)?;
            sink.append(&entry, &mut file).map_err(sink_error)?;
            FileFacts { digest: *digest, capability }
        }
        Body::Source { .. } => write_source(ahead.next_file()?, entry, sink)?,
    }))
}

fn write_source(
    mut file: FileReader<'_, impl Iterator<Item = Body>>,
    entry: Entry<'_>,
    sink: &mut dyn EntrySink,
) -> Result<FileFacts, OpError> {
    let capability = file.take_capability();
    let xattrs = of_value(capability.as_deref());
    let entry = Entry { xattrs: &xattrs, ..entry };
    let sent = match file.whole() {
        Some(bytes) => sink.append_bytes(&entry, bytes),
        None => sink.append(&entry, &mut file),
    };
    // The reader knows better than the sink why its bytes ended.
    let digest = file.finish()?;
    sent.map_err(sink_error)?;
    Ok(FileFacts { digest, capability })
}

fn put(sink: &mut dyn EntrySink, entry: Entry<'_>, content: &[u8]) -> Result<(), OpError> {
    sink.append_bytes(&entry, content).map_err(sink_error)
}

/// What an inode is in a tar.
pub(super) fn kind_of(kind: &InodeKind) -> EntryKind<'_> {
    match kind {
        InodeKind::File(body) => EntryKind::Regular { size_bytes: body.size_bytes() },
        InodeKind::Symlink(target) => EntryKind::Symlink { target: target.as_encoded_bytes() },
        InodeKind::Fifo => EntryKind::Fifo,
        InodeKind::CharDevice(rdev) => {
            EntryKind::Char { major: rustix::fs::major(*rdev), minor: rustix::fs::minor(*rdev) }
        }
        InodeKind::BlockDevice(rdev) => {
            EntryKind::Block { major: rustix::fs::major(*rdev), minor: rustix::fs::minor(*rdev) }
        }
    }
}

/// An entry with the metadata that layers hold.
pub(super) fn entry<'a>(
    path: &'a [u8],
    kind: EntryKind<'a>,
    attributes: &Attributes,
    xattrs: &'a [Xattr],
) -> Entry<'a> {
    Entry {
        path,
        kind,
        mode: if matches!(kind, EntryKind::Symlink { .. }) { 0o777 } else { attributes.mode },
        uid: attributes.uid,
        gid: attributes.gid,
        mtime_secs: attributes.mtime.0,
        mtime_nanos: attributes.mtime.1,
        xattrs,
    }
}

/// Of all xattrs, the one that layers hold.
pub(super) fn capability(xattrs: &[(std::ffi::OsString, Vec<u8>)]) -> Vec<Xattr> {
    of_value(xattrs.iter().find(|(name, _)| name == CAPABILITY_XATTR).map(|(_, value)| value.as_slice()))
}

pub(super) fn of_value(value: Option<&[u8]>) -> Vec<Xattr> {
    let xattr = |value: &[u8]| Xattr { name: CAPABILITY_XATTR.as_bytes().to_vec(), value: value.to_vec() };
    value.map(xattr).into_iter().collect()
}

fn sink_error(error: LayerError) -> OpError {
    match error {
        LayerError::Unwritable { .. } => OpError::input(error.to_string()),
        error => OpError::environment(error.to_string()),
    }
}
