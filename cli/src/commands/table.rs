//! Text tables as docker prints them: columns padded to their widest cell and three blanks.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr;

/// A table under construction.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row, one cell a heading.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The text, with a newline after each row. The last column is not padded.
    pub(crate) fn render(&self) -> String {
        let n_columns = self.rows[0].len();
        let widths: Vec<usize> = (0..n_columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let padding = width.saturating_sub(cell.width()) + 3;
                let _ = write!(line, "{cell}{}", " ".repeat(padding));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Least width of a column that is not the last, in the tables of images.
const LEAST_WIDTH: usize = 10;

/// Lines whose cells are separated by tabs, as `docker images` shows them: as [`Table`], with columns of at least ten
/// characters. Tabs are only followed within lines that have a cell for the column.
pub(crate) fn aligned(text: &str) -> String {
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        // The last cell of a line ends no column.
        for (column, cell) in row.iter().take(row.len() - 1).enumerate() {
            let width = (cell.width() + 3).max(LEAST_WIDTH);
            match widths.get_mut(column) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let mut aligned = String::with_capacity(text.len());
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            aligned.push_str(cell);
            if column + 1 < row.len() {
                aligned.push_str(&" ".repeat(widths[column].saturating_sub(cell.width())));
            }
        }
        aligned.push('\n');
    }
    aligned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabs_align_to_at_least_ten_characters() {
        assert_eq!(
            aligned("A\tB\tC\nlonger than that\tx\ty\n"),
            concat!("A                  B         C\n", "longer than that   x         y\n",)
        );
        assert_eq!(aligned(""), "");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec!["longer".into(), "x".into()]);
        assert_eq!(table.render(), "A        B\nlonger   x\n");
    }
}
