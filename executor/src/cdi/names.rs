//! How vendors, classes and devices may be called. Spec: CDI, "Kind" and "CDI Devices".

/// Longest vendor: a DNS name.
const MOST_VENDOR_BYTES: usize = 253;

/// Longest class.
const MOST_CLASS_BYTES: usize = 63;

/// What is wrong with a kind, `vendor.com/class`; `None` when nothing is.
pub(super) fn fault_of_kind(kind: &str) -> Option<String> {
    let Some((vendor, class)) = kind.split_once('/') else {
        return Some(format!("`{kind}` is no kind of devices: kinds look like `vendor.com/class`"));
    };
    let parts = [("vendor", vendor, MOST_VENDOR_BYTES), ("class", class, MOST_CLASS_BYTES)];
    parts.into_iter().find_map(|(what, name, most)| {
        let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
        let is_good = begins_well && has_form(name, &['_', '-', '.']) && name.len() <= most;
        (!is_good).then(|| {
            format!(
                "`{name}` is no name of a {what} (in `{kind}`): it begins with a letter, ends with a letter or digit, and has \
                 letters, digits, `_`, `-` and `.` between"
            )
        })
    })
}

/// What is wrong with the name of a device; `None` when nothing is.
pub(super) fn fault_of_device(name: &str) -> Option<String> {
    (!has_form(name, &['_', '-', '.', ':'])).then(|| {
        format!(
            "`{name}` is no name of a device: it begins and ends with a letter or digit, and has letters, digits, `_`, `-`, `.` \
             and `:` between"
        )
    })
}

/// Whether a name begins and ends with a letter or digit, and has besides those only what is in `others`.
fn has_form(name: &str, others: &[char]) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    name.starts_with(is_plain) && name.ends_with(is_plain) && name.chars().all(|c| is_plain(c) || others.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_a_vendor_and_a_class() {
        let long = format!("v.com/{}", "c".repeat(64));
        let cases = [
            ("vendor.com/foo", true),
            ("foo.bar.baz/foo-bar123.B_az", true),
            ("v/c", true),
            ("foo", false),
            ("vendor.com/foo/", false),
            ("vendor.com/foo/bar", false),
            ("/foo", false),
            ("vendor.com/", false),
            ("1vendor/c", false),
            ("vendor/-c", false),
            ("vendor./c", false),
            (&long, false),
        ];
        for (kind, want) in cases {
            assert_eq!(fault_of_kind(kind).is_none(), want, "{kind}: {:?}", fault_of_kind(kind));
        }
    }

    #[test]
    fn devices_may_begin_with_digits_and_have_colons() {
        let cases = [("0", true), ("all", true), ("GPU-1:0", true), ("a_b.c-d", true), ("", false), ("a:", false)];
        for (name, want) in cases {
            assert_eq!(fault_of_device(name).is_none(), want, "{name}");
        }
    }
}
