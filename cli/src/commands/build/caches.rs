//! Wires the caches elsewhere that the flags name.

use std::sync::Arc;

use cache::Codec;
use cache::remote::{DirectoryCache, RegistryCache, RemoteCache};
use executor::caches::{CacheParts, CacheSource, CacheTarget, Scope, domain};
use executor::packer::Wanted;
use oci::registry::Client;

use super::product::Product;
use super::wire::{Patience, cache_client};
use crate::cache_flags::{CacheExport, CacheFlags, CachePlace};
use crate::output::DEFAULT_GZIP_LEVEL;
use crate::request::BuildRequest;

/// In which form layers go to a place: that of an output, if that will do, so that they are compressed once.
pub(super) fn wanted(export: &CacheExport, products: &[Product]) -> Wanted {
    let leaves = |wanted: &Wanted| wanted.store_plain;
    let others: Vec<Wanted> = products.iter().filter_map(Product::wanted).filter(leaves).collect();
    let codec = export.codec.or(others.first().map(|wanted| wanted.codec));
    let codec = codec.unwrap_or(Codec::Gzip { level: DEFAULT_GZIP_LEVEL });
    let force = export.force_compression;
    let same = others.into_iter().find(|wanted| wanted.codec == codec && wanted.force == force);
    // What is in the same registry need not come here to get there.
    let may_stay_away = matches!(export.place, CachePlace::Registry { .. });
    same.unwrap_or(Wanted { codec, force, store_plain: true, may_stay_away })
}

/// What the engine is to use; `None` without any flag.
pub(super) fn parts(request: &BuildRequest, products: &[Product]) -> Option<CacheParts> {
    let flags = &request.caches;
    if *flags == CacheFlags::default() {
        return None;
    }
    let (reader, writer) = (cache_client(request, Patience::Little), cache_client(request, Patience::Some));
    let sources = flags.from.iter().map(|place| CacheSource {
        cache: open(place, &reader),
        image: match place {
            CachePlace::Registry { reference, .. } => Some((reader.clone(), reference.clone())),
            CachePlace::Directory(_) => None,
        },
    });
    let targets = flags.to.iter().map(|export| CacheTarget {
        cache: open(&export.place, &writer),
        wanted: wanted(export, products),
        scope: if export.is_max { Scope::AllSteps } else { Scope::Result },
        is_required: export.is_required,
    });
    Some(CacheParts { sources: sources.collect(), targets: targets.collect(), is_inline: flags.is_inline })
}

fn open(place: &CachePlace, client: &Client) -> Arc<dyn RemoteCache> {
    match place {
        CachePlace::Registry { reference, .. } => Arc::new(RegistryCache::new(client.clone(), reference, domain())),
        CachePlace::Directory(path) => Arc::new(DirectoryCache::new(path, domain())),
    }
}
