//! Flags of the commands about the store itself, and about the room that it takes.

use clap::{ArgAction, Args, Subcommand};

/// Limits of the store, while something fills it.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SpaceArgs {
    /// The most that the store may take: `20GB`, or `30%` of its disk. What is least useful goes while the build runs; what
    /// running builds and images need does not. 0 is no limit
    #[arg(long, value_name = "BYTES", env = "RBUILD_MAX_SIZE", hide_env_values = true)]
    pub(crate) max_size: Option<String>,
    /// What has to stay free on the disk of the store: `10GB`, or `5%`. As with --max-size
    #[arg(long, value_name = "BYTES", env = "RBUILD_MIN_FREE", hide_env_values = true)]
    pub(crate) min_free: Option<String>,
}

/// `rbuild store …`.
#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Verify everything that the store holds
    Check(StoreCheckArgs),
}

/// `rbuild store check`.
#[derive(Args, Debug)]
pub(crate) struct StoreCheckArgs {
    /// Drop what is broken, so that it is made or fetched again
    #[arg(long)]
    pub(crate) repair: bool,
    /// `table` or `json`
    #[arg(long, default_value = "table", value_parser = ["table", "json"])]
    pub(crate) format: String,
}

/// `rbuild du`.
#[derive(Args, Debug)]
pub(crate) struct DuArgs {
    /// Only records that match: `type=regular`, `inuse=true`, `until=24h`, `id=…`, `parents=…`, `description~=…`, `mutable`,
    /// `immutable`, `shared`, `private`; with `=`, `!=` or `~=` (repeatable)
    #[arg(long = "filter", value_name = "FILTER", action = ArgAction::Append)]
    pub(crate) filters: Vec<String>,
    /// All facts about each record: `--format pretty`
    #[arg(long)]
    pub(crate) verbose: bool,
    /// `table`, `pretty`, `json` (one object a line), a Go template, or `table TEMPLATE`. Fields: .ID .Parents .CreatedAt
    /// .Mutable .Reclaimable .Shared .Size .SizeBytes .Description .UsageCount .LastUsedAt .Type
    #[arg(long, value_name = "FORMAT", conflicts_with = "verbose")]
    pub(crate) format: Option<String>,
    /// Accepted for habit's sake: there is no builder to wait for
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
}

/// `rbuild prune`.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Also records of the types `internal` and `frontend`, such as documents of images that are gone
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only records that match: `until=24h`, `type=exec.cachemount`, `id=…`, `parents=…`, `description~=…`, `inuse`,
    /// `mutable`, `immutable`, `shared`, `private`; with `=`, `!=` or `~=` (repeatable)
    #[arg(long = "filter", value_name = "FILTER", action = ArgAction::Append)]
    pub(crate) filters: Vec<String>,
    /// Keep this much
    #[arg(long, visible_alias = "reserved-space", value_name = "BYTES")]
    pub(crate) keep_storage: Option<String>,
    /// Remove until no more than this is used
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_used_space: Option<String>,
    /// Remove until this much of the disk is free
    #[arg(long, value_name = "BYTES")]
    pub(crate) min_free_space: Option<String>,
    /// Show what would go, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// All facts about each record that goes
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Accepted for habit's sake: there is no builder to wait for
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
}
