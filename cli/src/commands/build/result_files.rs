//! `--iidfile` and `--metadata-file` (`spec/engine.md` §1.18).

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::product::Finished;
use crate::failure::Failure;
use crate::output::Output;
use crate::request::BuildRequest;

/// Removes an old image ID file, so that a build that fails leaves none.
pub(crate) fn remove_old(request: &BuildRequest) -> Result<(), Failure> {
    let Some(path) = &request.iidfile else { return Ok(()) };
    let makes_image = |output: &Output| {
        matches!(output, Output::Image(_) | Output::Oci { .. } | Output::Docker { .. } | Output::Load { .. })
    };
    if !request.outputs.iter().any(makes_image) {
        return Err(Failure::usage("--iidfile needs an output that is an image"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fault(path, error)),
        _ => Ok(()),
    }
}

/// Writes both after a build that succeeded.
pub(crate) fn write(request: &BuildRequest, finished: &Finished) -> Result<(), Failure> {
    if let (Some(path), Some(id)) = (&request.iidfile, finished.image_id()) {
        write_atomically(path, id.to_string().as_bytes())?;
    }
    if let Some(path) = &request.metadata_file {
        let text = serde_json::to_vec_pretty(&metadata(finished)).expect("JSON values can be written");
        write_atomically(path, &text)?;
    }
    Ok(())
}

fn metadata(finished: &Finished) -> Value {
    let mut object = Map::new();
    if let Some(id) = &finished.config_digest {
        object.insert("containerimage.config.digest".to_owned(), json!(id));
    }
    if let Some(descriptor) = &finished.descriptor {
        object.insert("containerimage.descriptor".to_owned(), json!(descriptor));
        object.insert("containerimage.digest".to_owned(), json!(descriptor.digest));
    }
    if !finished.names.is_empty() {
        object.insert("image.name".to_owned(), json!(finished.names.join(",")));
    }
    Value::Object(object)
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(|error| fault(path, error))?;
    file.write_all(bytes).map_err(|error| fault(path, error))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(|error| fault(path, error))?;
    file.persist(path).map_err(|error| fault(path, error.error))?;
    Ok(())
}

fn fault(path: &Path, error: std::io::Error) -> Failure {
    Failure::environment(format!("cannot write {}: {error}", path.display()))
}
