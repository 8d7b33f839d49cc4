//! `rbuild save` and `rbuild load`: images as archives (`spec/cli.md` §6).

use std::fs::File;
use std::io::IsTerminal;

use cache::{Codec, Store};
use executor::export::{Bundled, write_bundle};
use executor::import::{self, Loaded, Source};
use executor::packer::Wanted;
use executor::push::Parcel;
use executor::sandbox::Confinement;
use executor::source::image::PullPolicy;
use oci::{Descriptor, ImageRef, media_type};
use solver::{OpError, Step};

use super::build::dest::to_dest;
use super::image::{Image, find};
use super::transfer::{Transfer, step, with_transfer};
use crate::args::{LoadArgs, SaveArgs};
use crate::failure::Failure;
use crate::output::{self, Dest};
use crate::request::platform;
use crate::ui;

/// An image that was asked for.
struct Chosen {
    /// Its manifest or index.
    target: Descriptor,
    /// Which manifest docker is shown, by its place in the index.
    shown: usize,
    names: Vec<ImageRef>,
}

/// Writes images into one archive.
pub(crate) fn save(store: &Store, args: &SaveArgs, confinement: &Confinement) -> Result<(), Failure> {
    let dest = match &args.output {
        Some(path) if path.as_os_str() != "-" => Dest::File(path.clone()),
        _ if std::io::stdout().is_terminal() => {
            return Err(Failure::usage("cowardly refusing to save to a terminal")
                .help("use the -o flag, or redirect standard output"));
        }
        _ => Dest::Stdout,
    };
    let codec = output::codec(args.compression.as_deref(), None)?;
    // Without a wish, manifests stay as they are, with their digests.
    let wanted = Wanted {
        codec: codec.unwrap_or(Codec::Plain),
        force: codec.is_some(),
        store_plain: true,
        may_stay_away: false,
    };
    let chosen = chosen(store, args)?;
    with_transfer(store, confinement, true, PullPolicy::Missing, None, async |transfer| {
        let mut bundled = Vec::with_capacity(chosen.len());
        for image in chosen {
            let work = async |step: Step| bundle(transfer, image, wanted, &step).await;
            bundled.push(step(&transfer.progress, "collecting layers".to_owned(), work).await?);
        }
        let store = store.clone();
        let write = move || to_dest(&dest, |out| write_bundle(&store, &bundled, out)).map_err(OpError::from);
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => written,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(OpError::cancelled()),
        }
    })
}

/// What the words of the command line mean; names of the same image come together.
fn chosen(store: &Store, args: &SaveArgs) -> Result<Vec<Chosen>, Failure> {
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let mut chosen: Vec<Chosen> = Vec::new();
    for text in &args.images {
        let image = find(store, text)?.swap_remove(0);
        let one = match &wanted {
            Some(wanted) => image.for_platform(wanted, text)?,
            None => image.shown(),
        };
        let names: Vec<ImageRef> = image.stored.reference.iter().filter(|_| !is_id(text, &image)).cloned().collect();
        let whole = image.is_index() && wanted.is_none();
        let (target, shown) =
            if whole { (image.stored.target.clone(), image.position(one)) } else { (one.descriptor.clone(), 0) };
        match chosen.iter_mut().find(|known| known.target.digest == target.digest) {
            Some(known) => known.names.extend(names),
            None => chosen.push(Chosen { target, shown, names }),
        }
    }
    Ok(chosen)
}

/// An image that is named by its ID leaves without a name, as from docker.
fn is_id(text: &str, image: &Image) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let named = image
        .stored
        .reference
        .as_ref()
        .is_some_and(|name| ImageRef::parse_normalized(text).is_ok_and(|text| text.with_default_tag() == *name));
    !named && (image.id().hex().starts_with(hex) || image.stored.target.digest.hex().starts_with(hex))
}

async fn bundle(transfer: &Transfer<'_>, image: Chosen, wanted: Wanted, step: &Step) -> Result<Bundled, OpError> {
    let parcel = Parcel::of_stored(&transfer.packer(), transfer.store, &image.target, wanted).await?;
    transfer.relay().ensure_here(&parcel, step).await?;
    let mut names = image.names;
    names.dedup();
    let is_image = !media_type::is_index(&image.target.media_type) || parcel.documents.len() > 1;
    let docker_manifest =
        parcel.documents.get(image.shown).filter(|_| is_image).map(|document| document.descriptor.digest.clone());
    Ok(Bundled { parcel, docker_manifest, names })
}

/// Reads images out of an archive.
pub(crate) fn load(store: &Store, args: &LoadArgs) -> Result<(), Failure> {
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let _lease = store.lease()?;
    let loaded = match args.input.as_deref().filter(|path| path.as_os_str() != "-") {
        Some(path) if path.is_dir() => import::load(store, Source::Directory(path), wanted.as_ref()),
        Some(path) => {
            let mut file = File::open(path)
                .map_err(|error| Failure::input(format!("cannot open `{}`: {error}", path.display())))?;
            import::load(store, Source::Tar(&mut file), wanted.as_ref())
        }
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::usage("requested load from stdin, but stdin is empty")
                .help("name a file with -i, or redirect standard input"));
        }
        None => import::load(store, Source::Tar(&mut std::io::stdin()), wanted.as_ref()),
    };
    let loaded = loaded.map_err(OpError::from)?;
    store.sync()?;
    if args.quiet {
        return Ok(());
    }
    Ok(ui::stdout(&loaded.iter().map(said).collect::<String>())?)
}

/// What docker says of a loaded image.
fn said(image: &Loaded) -> String {
    if image.names.is_empty() {
        return format!("Loaded image ID: {}\n", image.id);
    }
    image.names.iter().map(|name| format!("Loaded image: {}\n", name.familiar())).collect()
}
