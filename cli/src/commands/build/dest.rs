//! Files that outputs go to.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use cache::BulkFile;
use executor::export::ExportError;

use crate::output::Dest;

/// Writes to standard output, or to a file that appears when it is complete.
pub(crate) fn to_dest(
    dest: &Dest,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    match dest {
        Dest::Stdout => write(&mut std::io::stdout().lock()),
        Dest::File(path) => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::create_dir_all(directory)
                .map_err(|error| ExportError::io("create directory", directory, error))?;
            if path.exists() && !path.is_file() {
                // A pipe or device cannot be replaced.
                let mut file =
                    File::options().write(true).open(path).map_err(|error| ExportError::io("open", path, error))?;
                return write(&mut file);
            }
            let fault = |error| ExportError::io("write", path, error);
            let file = tempfile::Builder::new().prefix(".rbuild-").tempfile_in(directory).map_err(fault)?;
            let mut bulk = BulkFile::new(file.as_file().try_clone().map_err(fault)?);
            write(&mut bulk)?;
            bulk.finish().map_err(fault)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            file.as_file().set_permissions(mode).map_err(fault)?;
            file.persist(path).map_err(|error| fault(error.error))?;
            Ok(())
        }
    }
}
