//! `--memory`, `--cpus` and their like: checked limits of a build's RUN steps (`spec/cli.md` §1.1).

use executor::sandbox::Resources;

use crate::args::LimitArgs;
use crate::failure::Failure;
use crate::request::parse_bytes;

/// The least memory that a program can be started with; docker's number.
const LEAST_MEMORY_BYTES: u64 = 6 << 20;

/// The scheduling period that groups begin with.
const PERIOD_US: u64 = 100_000;

/// What the kernel takes as a period.
const PERIODS_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;

/// Checks flags, and what `--resource` says in their stead; the later wins.
pub(crate) fn check(args: &LimitArgs) -> Result<Resources, Failure> {
    let mut resources = Resources::default();
    let flags = [
        ("memory", &args.memory),
        ("memory-swap", &args.memory_swap),
        ("cpus", &args.cpus),
        ("cpu-shares", &args.cpu_shares),
        ("cpu-period", &args.cpu_period),
        ("cpu-quota", &args.cpu_quota),
        ("cpuset-cpus", &args.cpuset_cpus),
        ("cpuset-mems", &args.cpuset_mems),
    ];
    for (name, value) in flags {
        if let Some(value) = value {
            set(&mut resources, name, value)?;
        }
    }
    for pair in &args.resource {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("invalid resource value: {pair}, expected key=value")))?;
        set(&mut resources, name.trim(), value.trim())?;
    }
    check_swap(&resources)?;
    Ok(resources)
}

fn set(resources: &mut Resources, name: &str, value: &str) -> Result<(), Failure> {
    let invalid = |why: &str| Failure::usage(format!("invalid {name} value: {value}: {why}"));
    let number = |text: &str| text.parse::<u64>().map_err(|_| invalid("must be a number"));
    match name {
        "memory" => {
            let bytes = parse_bytes(value)?;
            if bytes < LEAST_MEMORY_BYTES {
                return Err(invalid("must be 6m at least"));
            }
            resources.memory_bytes = Some(bytes);
        }
        "memory-swap" if value == "-1" => resources.memory_swap_bytes = Some(-1),
        "memory-swap" => {
            let bytes = i64::try_from(parse_bytes(value)?).map_err(|_| invalid("is too large"))?;
            resources.memory_swap_bytes = Some(bytes).filter(|bytes| *bytes > 0);
        }
        "cpus" => {
            let cpus: f64 = value.parse().map_err(|_| invalid("must be a number"))?;
            let quota = cpus * PERIOD_US as f64;
            if !(1_000.0..1e12).contains(&quota) {
                return Err(invalid("must be 0.01 at least"));
            }
            resources.cpu_quota_us = Some(quota as i64);
        }
        "cpu-shares" => resources.cpu_shares = Some(number(value)?).filter(|shares| *shares > 0),
        "cpu-period" => {
            let period = number(value)?;
            if period > 0 && !PERIODS_US.contains(&period) {
                return Err(invalid("must be from 1000 to 1000000 microseconds"));
            }
            resources.cpu_period_us = Some(period).filter(|period| *period > 0);
        }
        "cpu-quota" if value == "-1" => resources.cpu_quota_us = Some(-1),
        "cpu-quota" => {
            let quota = i64::try_from(number(value)?).map_err(|_| invalid("is too large"))?;
            if quota > 0 && quota < 1_000 {
                return Err(invalid("must be 1000 microseconds at least"));
            }
            resources.cpu_quota_us = Some(quota).filter(|quota| *quota > 0);
        }
        "cpuset-cpus" => {
            resources.cpuset_cpus = list(value).ok_or_else(|| invalid("expected numbers and ranges like 0-2,4"))?
        }
        "cpuset-mems" => {
            resources.cpuset_mems = list(value).ok_or_else(|| invalid("expected numbers and ranges like 0-2,4"))?
        }
        _ => {
            return Err(Failure::usage(format!("unknown resource `{name}`"))
                .help("--resource takes memory, memory-swap, cpus, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems"));
        }
    }
    Ok(())
}

/// A list of numbers and ranges; empty is none.
fn list(text: &str) -> Option<Option<String>> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_item = |item: &str| item.split_once('-').map_or(is_number(item), |(a, b)| is_number(a) && is_number(b));
    match text {
        "" => Some(None),
        text => text.split(',').all(is_item).then(|| Some(text.to_owned())),
    }
}

fn check_swap(resources: &Resources) -> Result<(), Failure> {
    let Some(both) = resources.memory_swap_bytes else { return Ok(()) };
    let Some(memory) = resources.memory_bytes else {
        return Err(Failure::usage("--memory-swap limits memory and swap together: give --memory, too"));
    };
    if u64::try_from(both).is_ok_and(|both| both < memory) {
        return Err(Failure::usage("--memory-swap is memory and swap together: it must not be less than --memory"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[&str]) -> Result<Resources, Failure> {
        check(&LimitArgs { resource: pairs.iter().map(|pair| (*pair).to_owned()).collect(), ..LimitArgs::default() })
    }

    #[test]
    fn flags_and_resources_say_the_same() {
        let args = LimitArgs {
            memory: Some("64m".to_owned()),
            cpus: Some("1.5".to_owned()),
            cpuset_cpus: Some("0-1,3".to_owned()),
            ..LimitArgs::default()
        };
        let expected = Resources {
            memory_bytes: Some(64 << 20),
            cpu_quota_us: Some(150_000),
            cpuset_cpus: Some("0-1,3".to_owned()),
            ..Resources::default()
        };
        assert_eq!(check(&args).expect("flags"), expected);
        assert_eq!(of(&["memory=64m", "cpus=1.5", "cpuset-cpus=0-1,3"]).expect("resources"), expected);
        assert_eq!(of(&[]).expect("none"), Resources::default());
        assert_eq!(of(&["memory=8m", "memory-swap=-1"]).expect("swap").memory_swap_bytes, Some(-1));
    }

    #[test]
    fn nonsense_is_refused() {
        for pair in [
            "memory=1k",
            "memory=x",
            "memory-swap=1g",
            "cpus=0",
            "cpus=nan",
            "cpu-period=5",
            "cpu-quota=5",
            "cpuset-cpus=a",
            "cpuset-cpus=1-",
            "gpus=1",
            "memory",
        ] {
            assert!(of(&[pair]).is_err(), "{pair}");
        }
        assert!(of(&["memory=1g", "memory-swap=512m"]).is_err());
    }
}
