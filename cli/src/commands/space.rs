//! `rbuild du` and `rbuild prune` (`spec/cli.md` §5.2, §5.3).

use std::io::{BufRead, IsTerminal, Write};

use cache::{PruneFilter, Store, UsageRecord};
use serde_json::json;

use super::listing::Listing;
use super::table::Table;
use crate::args::{DuArgs, PruneArgs};
use crate::failure::Failure;
use crate::request::parse_bytes;
use crate::ui;
use crate::ui::format::{ago, size_short};

const LISTING: Listing = Listing {
    headings: &[
        ("ID", "ID"),
        ("Parents", "PARENTS"),
        ("CreatedAt", "CREATED AT"),
        ("Mutable", "MUTABLE"),
        ("Reclaimable", "RECLAIMABLE"),
        ("Shared", "SHARED"),
        ("Size", "SIZE"),
        ("SizeBytes", "BYTES"),
        ("Description", "DESCRIPTION"),
        ("UsageCount", "USAGE COUNT"),
        ("LastUsedAt", "LAST ACCESSED"),
        ("Type", "TYPE"),
    ],
    table: "{{.ID}}\t{{.Reclaimable}}\t{{.Size}}\t{{.LastUsedAt}}",
};

/// Shows what the store holds.
pub(crate) fn du(store: &Store, args: &DuArgs, now: i64) -> Result<(), Failure> {
    let filter = filter(&args.filters)?;
    let mut records = store.usage()?;
    records.retain(|record| filter.matches(record));
    let format = if args.verbose { "pretty" } else { args.format.as_deref().unwrap_or_default().trim() };
    let text = match format {
        "" | "table" => table(&records, now) + &totals(&records),
        "pretty" => records.iter().map(|record| verbose(record, now)).collect::<String>() + &totals(&records),
        format => {
            let rows: Vec<_> = records.iter().map(|record| as_json(record, now)).collect();
            LISTING.render(format, &rows)?
        }
    };
    Ok(ui::stdout(&text)?)
}

/// Removes what can be made again.
pub(crate) fn prune(store: &Store, args: &PruneArgs, now: i64) -> Result<(), Failure> {
    let mut filter = filter(&args.filters)?;
    filter.all = args.all;
    let bytes = |text: &Option<String>| text.as_deref().map(parse_bytes).transpose();
    filter.reserved_space = bytes(&args.keep_storage)?;
    filter.max_used_space = bytes(&args.max_used_space)?;
    filter.min_free_space = bytes(&args.min_free_space)?;
    if !args.force && !args.dry_run && !confirmed(args.all)? {
        return Ok(());
    }
    let removed = store.prune(&filter, args.dry_run)?;
    let total: u64 = removed.iter().map(|record| record.size_bytes).sum();
    let text = match (removed.is_empty(), args.verbose) {
        (true, _) => String::new(),
        (false, true) => removed.iter().map(|record| verbose(record, now)).collect(),
        (false, false) => table(&removed, now),
    };
    Ok(ui::stdout(&format!("{text}Total:  {}\n", size_short(total)))?)
}

fn filter(flags: &[String]) -> Result<PruneFilter, Failure> {
    PruneFilter::from_flags(flags).map_err(|error| Failure::usage(error.to_string()))
}

/// Asks on the terminal. Without one there is nobody to ask, and nothing is removed.
fn confirmed(all: bool) -> Result<bool, Failure> {
    let what = if all { "all build cache" } else { "all dangling build cache" };
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("this removes {what}, and there is no terminal to confirm it on"))
            .help("say --force"));
    }
    ui::stderr(|out| write!(out, "WARNING! This will remove {what}. Are you sure you want to continue? [y/N] "));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn table(records: &[UsageRecord], now: i64) -> String {
    let mut table = Table::new(&["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"]);
    for record in records {
        let id = format!("{}{}", record.id, if record.mutable { "*" } else { "" });
        let size = format!("{}{}", size_short(record.size_bytes), if record.shared { "*" } else { "" });
        table.row(vec![id, (!record.in_use).to_string(), size, ago(now - record.last_used_at)]);
    }
    table.render()
}

fn totals(records: &[UsageRecord]) -> String {
    let sum = |keep: &dyn Fn(&UsageRecord) -> bool| {
        size_short(records.iter().filter(|record| keep(record)).map(|record| record.size_bytes).sum())
    };
    format!(
        "Shared:        {}\nPrivate:       {}\nReclaimable:   {}\nTotal:         {}\n",
        sum(&|record| record.shared),
        sum(&|record| !record.shared),
        sum(&|record| !record.in_use),
        sum(&|_| true)
    )
}

fn verbose(record: &UsageRecord, now: i64) -> String {
    let time = |seconds| oci::time::format_rfc3339(seconds, 0);
    let parents: String = record.parents.iter().map(|parent| format!("Parent:         {parent}\n")).collect();
    format!(
        "ID:             {}\n{parents}Created at:     {}\nMutable:        {}\nReclaimable:    {}\nShared:         {}\n\
         Size:           {}\nDescription:    {}\nUsage count:    {}\nLast used:      {}\nType:           {}\n\n",
        record.id,
        time(record.created_at),
        record.mutable,
        !record.in_use,
        record.shared,
        size_short(record.size_bytes),
        record.description,
        record.usage_count,
        ago(now - record.last_used_at),
        record.kind,
    )
}

fn as_json(record: &UsageRecord, now: i64) -> serde_json::Value {
    let time = |seconds| oci::time::format_rfc3339(seconds, 0);
    json!({
        "ID": record.id,
        "Parents": record.parents,
        "CreatedAt": time(record.created_at),
        "Mutable": record.mutable,
        "Reclaimable": !record.in_use,
        "Shared": record.shared,
        "Size": size_short(record.size_bytes),
        "SizeBytes": record.size_bytes,
        "Description": record.description,
        "UsageCount": record.usage_count,
        "LastUsedAt": ago(now - record.last_used_at),
        "Type": record.kind.name(),
    })
}
