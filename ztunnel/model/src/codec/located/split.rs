//! The documents of a text. A line that starts with `---` starts one wherever it stands, even in a block of text, so no
//! parser is needed to find them, and a document that cannot be parsed does not hide those behind it.

/// Each document that holds something, with the number of lines before it.
pub(super) fn split(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut starts = vec![(0, 0)];
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if number > 0 && is_start(line) {
            starts.push((number, offset));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = starts.iter().skip(1).map(|(_, start)| *start).chain([text.len()]).collect();
    let documents = starts.into_iter().zip(ends).map(|((lines, start), end)| (lines, &text[start..end]));
    documents.filter(|(_, document)| !is_empty(document))
}

fn is_start(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Nothing but comments, directives and marks.
fn is_empty(document: &str) -> bool {
    document.lines().all(|line| {
        let line = line.trim_start_matches('\u{feff}');
        let rest = if is_start(line) { &line[3..] } else { line };
        let rest = rest.trim();
        rest.is_empty() || rest == "..." || rest.starts_with('#') || line.starts_with('%')
    })
}
