//! Columns for reading.

pub(crate) use dg_runtime::placed::ranges;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Rows of equal length, the first of which is the heading; columns are as wide as their widest cell. Those in `right`
/// are numbers.
pub(crate) fn columns(rows: &[Vec<String>], right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(rows);
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `12.3 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n < KIB * KIB => format!("{:.0} KiB", n / KIB),
        n if n < KIB * KIB * KIB => format!("{:.1} MiB", n / KIB / KIB),
        n => format!("{:.1} GiB", n / KIB / KIB / KIB),
    }
}

const KIB: f64 = 1024.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned() {
        let rows = [vec!["node".into(), "n".into()], vec!["é".into(), "12".into()]];
        assert_eq!(columns(&rows, &[1]), " node   n\n é     12\n");
        assert_eq!(
            (ranges(&[0, 1, 2, 5, 7, 8]), ranges(&[]), ranges(&[3])),
            ("0-2,5,7-8".into(), "".into(), "3".into())
        );
        assert_eq!((bytes(512), bytes(3 << 30)), ("0 KiB".into(), "3.0 GiB".into()));
    }
}
