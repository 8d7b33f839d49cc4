//! The base image `busybox`: the tree of the goldens' script as an image with one layer and one history entry, laid out
//! as the files that a registry answers with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::archive::hex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Runs the goldens' script and writes its tree as the repository `busybox` of a registry: `busybox/manifests/latest`
/// and `busybox/blobs/DIGEST`. Returns the directory that is a registry's `/v2/`.
pub(crate) fn busybox_repository(goldens: &Path, scratch: &Path) -> Result<PathBuf, String> {
    let root = scratch.join("busybox-root");
    let mut command = Command::new("sh");
    command
        .arg(goldens.join("base/busybox.sh"))
        .arg(&root)
        .env("BUSYBOX", e2e::find_program("busybox").unwrap_or_default());
    let output = command.output().map_err(|error| format!("sh: {error}"))?;
    if !output.status.success() {
        return Err(format!("busybox.sh: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let layer = layer_tar(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let registry = scratch.join("registry");
    let repository = registry.join("busybox");
    write_repository(&repository, &layer).map_err(|error| format!("{}: {error}", repository.display()))?;
    Ok(registry)
}

fn layer_tar(root: &Path) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.sparse(false);
    tar.append_dir_all(".", root)?;
    tar.into_inner()
}

fn write_repository(repository: &Path, layer: &[u8]) -> std::io::Result<()> {
    let (blobs, manifests) = (repository.join("blobs"), repository.join("manifests"));
    fs::create_dir_all(&blobs)?;
    fs::create_dir_all(&manifests)?;
    let put = |media_type: &str, data: &[u8]| -> std::io::Result<Value> {
        let digest = format!("sha256:{}", hex(&Sha256::digest(data)));
        fs::write(blobs.join(&digest), data)?;
        let media_type = format!("application/vnd.oci.image.{media_type}");
        Ok(json!({"mediaType": media_type, "digest": digest, "size": data.len()}))
    };
    let layer = put("layer.v1.tar", layer)?;
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let created = "1970-01-01T00:00:00Z";
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": created, "config": {"Env": [path], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        "history": [{"created": created, "created_by": "busybox.sh"}],
    });
    let config = put("config.v1+json", config.to_string().as_bytes())?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]}).to_string();
    fs::write(manifests.join(format!("sha256:{}", hex(&Sha256::digest(&manifest)))), &manifest)?;
    fs::write(manifests.join("latest"), manifest)
}
