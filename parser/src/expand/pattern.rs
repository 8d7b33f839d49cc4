//! Patterns of `#`, `%` and `/`: `*` is any text, `?` one character, everything else itself.
//!
//! A pattern is a list of segments with `*` between them. Where a segment may stand is decided by its first or last
//! occurrence, so matching never backtracks.

use super::ExpandFault;

/// One character of a segment; `None` is `?`.
type Atom = Option<char>;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    /// Never empty; `segments.len() - 1` is the number of stars.
    segments: Vec<Vec<Atom>>,
}

impl Pattern {
    /// A backslash makes `*`, `?` and itself literal and vanishes before `}` and `/`.
    pub(super) fn parse(text: &str) -> Result<Self, ExpandFault> {
        let mut segments = vec![Vec::new()];
        let mut segment = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '*' => {
                    segments.pop();
                    segments.extend([std::mem::take(&mut segment), Vec::new()]);
                }
                '?' => segment.push(None),
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '?' | '\\' | '}' | '/')) => segment.push(Some(escaped)),
                    other => {
                        let escaped = other.unwrap_or('\u{fffd}');
                        return Err(ExpandFault::InvalidPattern { pattern: text.to_owned(), escaped });
                    }
                },
                c => segment.push(Some(c)),
            }
        }
        segments.pop();
        segments.push(segment);
        Ok(Self { segments })
    }

    /// Comparing takes as many steps at each character of a value, at most.
    pub(super) fn longest_segment(&self) -> usize {
        self.segments.iter().map(|segment| segment.len() + 1).max().unwrap_or(1)
    }

    /// `value` without the prefix that matches.
    pub(super) fn trim_prefix(&self, value: &str, longest: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        match self.prefix_end(&chars, longest) {
            Some(end) => chars[end..].iter().collect(),
            None => value.to_owned(),
        }
    }

    /// `value` without the suffix that matches.
    pub(super) fn trim_suffix(&self, value: &str, longest: bool) -> String {
        let mut chars: Vec<char> = value.chars().collect();
        chars.reverse();
        match self.reversed().prefix_end(&chars, longest) {
            Some(end) => chars[end..].iter().rev().collect(),
            None => value.to_owned(),
        }
    }

    /// `value` with the first match, or every match, replaced. Matches are as long as can be and do not overlap; an
    /// empty one directly behind another does not count. `None` when the result has more than about `max_bytes`.
    pub(super) fn replace(&self, value: &str, replacement: &str, every: bool, max_bytes: usize) -> Option<String> {
        let chars: Vec<char> = value.chars().collect();
        let Some(reach) = self.reach(&chars) else { return Some(value.to_owned()) };
        let mut out = String::with_capacity(value.len());
        let mut at = 0;
        let mut last_end = None;
        while at <= chars.len() {
            let Some((start, end)) = self.find(&chars, at, reach) else { break };
            out.extend(&chars[at..start]);
            if end > start || last_end != Some(start) {
                out.push_str(replacement);
            }
            at = end;
            if end == start {
                out.extend(chars.get(end));
                at += 1;
            }
            last_end = Some(end);
            if out.len() > max_bytes {
                return None;
            }
            if !every {
                break;
            }
        }
        out.extend(chars.get(at..).unwrap_or_default());
        Some(out)
    }

    fn reversed(&self) -> Self {
        let flip = |segment: &Vec<Atom>| segment.iter().rev().copied().collect();
        Self { segments: self.segments.iter().rev().map(flip).collect() }
    }

    /// Where a match that begins at 0 ends.
    fn prefix_end(&self, chars: &[char], longest: bool) -> Option<usize> {
        let (first, others) = self.segments.split_first()?;
        if !stands_at(first, chars, 0) {
            return None;
        }
        let mut end = first.len();
        for segment in others {
            end = (end..=chars.len()).find(|&at| stands_at(segment, chars, at))? + segment.len();
        }
        match others.last() {
            Some(last) if longest => last_occurrence(last, chars, chars.len()).map(|at| at + last.len()),
            _ => Some(end),
        }
    }

    /// The last place where the first star may begin such that what follows it still matches, and where the longest
    /// match ends. The place is `usize::MAX` when there is no star.
    fn reach(&self, chars: &[char]) -> Option<(usize, usize)> {
        let others = &self.segments[1..];
        let Some(last) = others.last() else { return Some((usize::MAX, 0)) };
        let mut limit = chars.len();
        for segment in others.iter().rev() {
            limit = last_occurrence(segment, chars, limit)?;
        }
        let end = last_occurrence(last, chars, chars.len())? + last.len();
        Some((limit, end))
    }

    /// The first match at or behind `at`.
    fn find(&self, chars: &[char], at: usize, (limit, end): (usize, usize)) -> Option<(usize, usize)> {
        let first = &self.segments[0];
        let start = (at..=chars.len()).find(|&start| stands_at(first, chars, start))?;
        let first_end = start + first.len();
        if self.segments.len() == 1 { Some((start, first_end)) } else { (first_end <= limit).then_some((start, end)) }
    }
}

fn stands_at(segment: &[Atom], chars: &[char], at: usize) -> bool {
    let Some(window) = chars.get(at..at + segment.len()) else { return false };
    segment.iter().zip(window).all(|(atom, c)| atom.is_none_or(|wanted| wanted == *c))
}

/// The last place at which `segment` ends at or before `limit`.
fn last_occurrence(segment: &[Atom], chars: &[char], limit: usize) -> Option<usize> {
    let latest = limit.checked_sub(segment.len())?;
    (0..=latest).rev().find(|&at| stands_at(segment, chars, at))
}
