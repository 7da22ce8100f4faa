//! Left-aligned columns, each as wide as its widest cell, with notes under a row.

use std::fmt;

pub(crate) struct Table {
    columns: usize,
    lines: Vec<Line>,
}

enum Line {
    Row(Vec<String>),
    /// As long as it is.
    Note(String),
}

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        let head = columns.iter().map(|&column| column.to_owned()).collect();
        Self { columns: columns.len(), lines: vec![Line::Row(head)] }
    }

    pub(crate) fn add(&mut self, cells: Vec<String>) {
        let filled = cells.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell });
        self.lines.push(Line::Row(filled.collect()));
    }

    /// Stands under the row that was added last.
    pub(crate) fn note(&mut self, text: &str) {
        self.lines.push(Line::Note(text.to_owned()));
    }

    fn rows(&self) -> impl Iterator<Item = &Vec<String>> {
        self.lines.iter().filter_map(|line| match line {
            Line::Row(cells) => Some(cells),
            Line::Note(_) => None,
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.columns).map(width).collect();
        for line in &self.lines {
            match line {
                Line::Row(cells) => {
                    let padded: Vec<String> =
                        cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
                    writeln!(f, "{}", padded.join("  ").trim_end())?;
                }
                Line::Note(text) => writeln!(f, "    {text}")?,
            }
        }
        Ok(())
    }
}
