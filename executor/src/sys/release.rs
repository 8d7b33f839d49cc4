//! Which release the kernel is, for what cannot be tried without an effect.

/// Whether this kernel is of that release (major, minor) or a later one.
pub fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    is_at_least(&rustix::system::uname().release().to_string_lossy(), wanted)
}

fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version| version >= wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        let cases = [
            ("6.14.0", true, true),
            ("6.18.44-fc-v595", true, true),
            ("7.0-rc1", true, true),
            ("7.0", true, true),
            ("6.100", true, true),
            ("6.9.1-arch1", false, true),
            ("6.7.0", false, true),
            ("6.6.99", false, false),
            ("5.15", false, false),
            ("5.15.0-91-generic", false, false),
            ("x", false, false),
            ("", false, false),
        ];
        for (release, is_6_14, is_6_7) in cases {
            assert_eq!((is_at_least(release, (6, 14)), is_at_least(release, (6, 7))), (is_6_14, is_6_7), "{release}");
        }
    }
}
