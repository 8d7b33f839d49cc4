//! Runs one golden build, with its base and its rebuilds, and gives the result in the recorded form.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::archive::{self, Image, Layer};
use e2e::case::{Case, Work};
use e2e::describe;
use e2e::web::Web;
use serde_json::{Value, json};

use crate::rbuild::{Printed, Rbuild};

/// What all builds of a run stand on. Every thread has its own.
pub(crate) struct Bench<'a> {
    /// The program.
    pub(crate) rbuild: &'a Rbuild,
    /// The server.
    pub(crate) web: &'a Web,
    /// The base image, as it is found in results.
    pub(crate) busybox: Image,
}

impl<'a> Bench<'a> {
    /// Reads the base image from a build on it.
    pub(crate) fn new(rbuild: &'a Rbuild, web: &'a Web, scratch: &Path) -> Result<Self, String> {
        let dir = scratch.join("from-busybox");
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        fs::write(dir.join("Dockerfile"), "FROM busybox\n").map_err(|error| error.to_string())?;
        let printed =
            rbuild.build(&dir, ["--progress=plain", "-o", "type=oci,dest=../o.tar,compression=uncompressed", "."])?;
        let mut images = archive::read_images(&written(&scratch.join("o.tar"), &printed)?, &[])?;
        Ok(Self { rbuild, web, busybox: images.pop().ok_or("no image")? })
    }

    /// Runs one golden build in a copy of its folder below `scratch`.
    pub(crate) fn run(&self, golden: &Case, scratch: &Path) -> Result<Value, String> {
        let work = Work::prepare(golden, scratch.join("work"), "context", self.web)?;
        let result = if golden.spec.args.iter().any(|arg| arg == "--call") {
            self.call(&work)?
        } else {
            Build { bench: self, golden, work: &work, out: scratch.join("out") }.run()?
        };
        let Some(url) = &work.web else { return Ok(result) };
        serde_json::from_str(&result.to_string().replace(url, "{WEB}")).map_err(|error| error.to_string())
    }

    /// The outcome of a `--call`: exit status, output as text and as JSON, the error.
    fn call(&self, work: &Work) -> Result<Value, String> {
        let mut args = work.dockerfile_flags(&work.args);
        args.extend(work.args.iter().cloned().chain([work.context.clone()]));
        let printed = self.rbuild.build(&work.dir, &args)?;
        let mut result = json!({"exit": printed.code, "text": printed.stdout});
        if let Some(error) = printed.error() {
            result["error"] = json!(error);
        }
        let method = args.iter().position(|arg| arg == "--call").map(|index| index + 1);
        if let Some(method) = method.and_then(|index| args.get_mut(index)) {
            method.push_str(",format=json");
        }
        let printed = self.rbuild.build(&work.dir, &args)?;
        result["json"] = serde_json::from_str(&printed.stdout).unwrap_or_default();
        if let Value::Object(fields) = &mut result["json"] {
            fields.remove("sources");
        }
        Ok(result)
    }
}

/// One golden build under way.
struct Build<'a> {
    bench: &'a Bench<'a>,
    golden: &'a Case,
    work: &'a Work,
    out: PathBuf,
}

impl Build<'_> {
    fn run(&self) -> Result<Value, String> {
        let spec = &self.golden.spec;
        let mut known = vec![("busybox".to_owned(), self.image(&self.bench.busybox))];
        if let Some(name) = &spec.base {
            known.push((name.clone(), self.base(name)?));
        }
        let fresh = spec.rebuild.is_empty();
        let printed = self.build(&self.work.args, fresh)?;
        let mut result = json!({"ok": printed.code == 0});
        if printed.code != 0 {
            result["error"] = json!(printed.error());
            result["lines"] = json!(printed.lines());
        } else if fresh {
            merge(&mut result, self.describe(&known, &printed)?);
        }
        if fresh {
            result["warnings"] = json!(printed.warnings());
        }
        if spec.records("steps") {
            result["steps"] = json!(printed.steps());
        }
        let first = if spec.records("same_image") { Some(self.digest(&printed)?) } else { None };
        for rebuild in &spec.rebuild {
            if let Some(change) = &rebuild.change {
                self.work.script(change)?;
            }
            let printed = self.build(rebuild.args.as_ref().unwrap_or(&self.work.args), false)?;
            let mut again = json!({"ok": printed.code == 0, "cached": printed.cached_steps(true)});
            again["ran"] = json!(printed.cached_steps(false));
            if let Some(first) = &first {
                again["same_image"] = json!(self.digest(&printed)? == *first);
            }
            if spec.records("files") {
                again["files"] = self.describe(&known, &printed)?["files"].take();
            }
            match &mut result["rebuilds"] {
                Value::Array(rebuilds) => rebuilds.push(again),
                none => *none = json!([again]),
            }
        }
        Ok(result)
    }

    fn build(&self, args: &[String], fresh: bool) -> Result<Printed, String> {
        let mut flags = vec!["--progress=plain".to_owned(), "--output".to_owned(), self.output()];
        flags.extend(self.work.dockerfile_flags(args));
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "--output" => drop(rest.next()),
                arg => flags.push(arg.to_owned()),
            }
        }
        flags.extend(fresh.then(|| "--no-cache".to_owned()));
        flags.push(self.work.context.clone());
        self.bench.rbuild.build(&self.work.dir, flags)
    }

    /// The case's kind of output.
    fn kind(&self) -> &str {
        let mut args = self.golden.spec.args.iter();
        args.find(|arg| *arg == "--output").and(args.next()).map_or("type=oci", String::as_str)
    }

    fn output(&self) -> String {
        let kind = self.kind();
        // What is compared does not depend on the compression.
        let compression = if kind.starts_with("type=oci") { ",compression=uncompressed" } else { "" };
        format!("{kind},dest={}{compression}", self.out.display())
    }

    /// Builds the image of `base/` under its name.
    fn base(&self, name: &str) -> Result<Image, String> {
        let dir = self.work.dir.join("base");
        let dest = format!("type=oci,dest={},compression=uncompressed", self.out.display());
        let args = ["--progress=plain", "--no-cache", "-t", name, "-o", "type=image", "-o", &dest, "."];
        let printed = self.bench.rbuild.build(&dir, args)?;
        let known = self.bench.busybox.layers.as_slice();
        let mut images = archive::read_images(&written(&self.out, &printed)?, known)?;
        images.pop().ok_or_else(|| "the base is no image".to_owned())
    }

    fn image(&self, image: &Image) -> Image {
        Image { platform: image.platform.clone(), config: image.config.clone(), layers: image.layers.clone() }
    }

    fn digest(&self, printed: &Printed) -> Result<String, String> {
        archive::first_digest(&written(&self.out, printed)?)
    }

    fn describe(&self, known: &[(String, Image)], printed: &Printed) -> Result<Value, String> {
        let spec = &self.golden.spec;
        if self.kind().starts_with("type=oci") {
            let layers: Vec<Layer> = known.iter().flat_map(|(_, image)| image.layers.clone()).collect();
            let images = archive::read_images(&written(&self.out, printed)?, &layers)?;
            return Ok(describe::images(&images, known, spec));
        }
        let tar = if self.out.is_dir() {
            let mut packer = std::process::Command::new("tar");
            packer.arg("-C").arg(&self.out).args(["--sort=name", "--numeric-owner", "-cf", "-", "."]);
            packer.output().map_err(|error| format!("tar: {error}"))?.stdout
        } else {
            written(&self.out, printed)?
        };
        let layer = Layer { digest: String::new(), entries: archive::read_layer(&tar)?.into() };
        Ok(describe::tree(&archive::tree_of(&[layer]), &self.bench.busybox, spec))
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn written(path: &Path, printed: &Printed) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}: {}", path.display(), printed.stderr.trim_end()))
}
