//! The tree of a document, built from the parser's events.

use std::fmt::Write as _;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::scalar::{self, Meaning};

/// Deeper documents are refused: nothing that is read here nests so far, and decoding recurses.
const MAX_DEPTH: usize = 64;

pub(super) type NodeId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
}

#[derive(Debug)]
pub(super) struct Node {
    pub kind: Kind,
    pub position: Position,
    /// The collection that holds this node, and under what.
    parent: Option<(NodeId, Step)>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<NodeId>),
    Mapping(Vec<Entry>),
    /// Named as a mistake already.
    Broken,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub position: Position,
    pub value: NodeId,
}

#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

impl Kind {
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Kind::Scalar { text, plain: true } if scalar::meaning(text) == Meaning::Null)
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Kind::Sequence(_) => "a list".to_owned(),
            Kind::Mapping(_) => "a mapping".to_owned(),
            Kind::Broken => "nothing readable".to_owned(),
            Kind::Scalar { text, plain: false } => format!("the text {text:?}"),
            Kind::Scalar { text, plain: true } => match scalar::meaning(text) {
                Meaning::Null => "nothing".to_owned(),
                Meaning::Bool(_) => format!("the truth value {text}"),
                Meaning::Unsigned(_) | Meaning::Signed(_) | Meaning::Float(_) => format!("the number {text}"),
                Meaning::Text => format!("the text {text:?}"),
            },
        }
    }
}

/// A part that is left out of the tree, or stands in it as `Kind::Broken`.
#[derive(Debug)]
pub(super) struct Fault {
    pub node: NodeId,
    pub position: Position,
    pub reason: String,
}

/// Why there is no tree. Half a document says nothing about what is missing in it.
#[derive(Debug)]
pub(super) struct Fatal {
    pub position: Position,
    /// Where the reading stopped.
    pub path: String,
    pub reason: String,
}

#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    pub(super) const ROOT: NodeId = 0;

    /// `before` is the number of lines that stand before the text in its file.
    pub(super) fn parse(text: &str, before: usize) -> Result<(Self, Vec<Fault>), Fatal> {
        let position = |marker: &Marker| {
            let Position { line, column } = position(marker);
            Position { line: line + before, column }
        };
        let mut builder = Builder::default();
        if let Some(Position { line, column }) = nul(text) {
            let position = Position { line: line + before, column };
            // The scanner takes NUL for the end of the text and would read half a file in silence.
            return Err(builder.fatal(position, "a NUL character is not allowed".to_owned()));
        }
        for event in Parser::new_from_str(text) {
            let (event, span) =
                event.map_err(|error| builder.fatal(position(error.marker()), error.info().to_owned()))?;
            let position = position(&span.start);
            builder.take(event, position).map_err(|reason| builder.fatal(position, reason))?;
        }
        if builder.tree.nodes.is_empty() {
            builder.scalar(String::new(), true, Position { line: 1 + before, column: 1 });
        }
        Ok((builder.tree, builder.faults))
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    pub(super) fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.nodes[id].parent.as_ref().map(|(parent, _)| *parent)
    }

    pub(super) fn path(&self, mut id: NodeId) -> String {
        let mut steps = Vec::new();
        while let Some((parent, step)) = &self.nodes[id].parent {
            steps.push(step);
            id = *parent;
        }
        let mut path = String::new();
        for step in steps.into_iter().rev() {
            let written = match step {
                Step::Index(index) => write!(path, "[{index}]"),
                Step::Key(key) if !is_word(key) => write!(path, "[{key:?}]"),
                Step::Key(key) if path.is_empty() => write!(path, "{key}"),
                Step::Key(key) => write!(path, ".{key}"),
            };
            written.expect("invariant: writing to a String cannot fail");
        }
        path
    }
}

#[derive(Default)]
struct Builder {
    tree: Tree,
    faults: Vec<Fault>,
    open: Vec<Open>,
    documents: usize,
}

/// A collection whose end has not come yet.
struct Open {
    id: NodeId,
    /// In a mapping: the key whose value comes next.
    key: Option<(String, Position)>,
    /// In a mapping: what is being read is a key that is a collection, named as a mistake.
    in_key: bool,
}

impl Builder {
    /// An error ends the reading.
    fn take(&mut self, event: Event<'_>, position: Position) -> Result<(), String> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err("a second document starts here; expected one".to_owned());
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let id = self.scalar(text.into_owned(), plain, position);
                self.check_decoration(id, position, anchor, tag.is_some());
            }
            Event::Alias(_) => {
                let id = self.add(Kind::Broken, position);
                self.fault(id, position, "aliases are not supported; repeat the value");
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(Kind::Sequence(Vec::new()), position, anchor, tag.is_some())?
            }
            Event::MappingStart(anchor, tag) => {
                self.begin(Kind::Mapping(Vec::new()), position, anchor, tag.is_some())?
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Nothing => {}
        }
        Ok(())
    }

    fn begin(&mut self, kind: Kind, position: Position, anchor: usize, tagged: bool) -> Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        let id = self.add(kind, position);
        self.check_decoration(id, position, anchor, tagged);
        self.open.push(Open { id, key: None, in_key: false });
        Ok(())
    }

    fn end(&mut self) {
        self.open.pop();
        if let Some(open) = self.open.last_mut().filter(|open| open.in_key) {
            // The collection that just ended was a key: its value is read, and left out.
            open.in_key = false;
            open.key = Some((String::new(), Position { line: 0, column: 0 }));
        }
    }

    fn scalar(&mut self, text: String, plain: bool, position: Position) -> NodeId {
        self.add(Kind::Scalar { text, plain }, position)
    }

    /// Puts a node where the innermost open collection expects it.
    fn add(&mut self, kind: Kind, position: Position) -> NodeId {
        let id = self.tree.nodes.len();
        let parent = self.open.last().map(|open| open.id);
        self.tree.nodes.push(Node { kind, position, parent: None });
        let Some(parent) = parent else { return id };
        let step = match &self.tree.nodes[parent].kind {
            Kind::Sequence(items) => Some(Step::Index(items.len())),
            _ => None,
        };
        match step {
            Some(step) => {
                self.tree.nodes[id].parent = Some((parent, step));
                if let Kind::Sequence(items) = &mut self.tree.nodes[parent].kind {
                    items.push(id);
                }
            }
            None => self.add_to_mapping(parent, id, position),
        }
        id
    }

    fn add_to_mapping(&mut self, parent: NodeId, id: NodeId, position: Position) {
        let open = self.open.last_mut().expect("invariant: the parent is open");
        if let Some((key, key_position)) = open.key.take() {
            self.tree.nodes[id].parent = Some((parent, Step::Key(key.clone())));
            if key_position.line == 0 {
                return;
            }
            let Kind::Mapping(entries) = &mut self.tree.nodes[parent].kind else { return };
            match entries.iter().find(|entry| entry.key == key) {
                Some(first) => {
                    let reason =
                        format!("the key {key:?} stands twice, first in line {}", first.position.line);
                    self.faults.push(Fault { node: id, position: key_position, reason });
                }
                None => entries.push(Entry { key, position: key_position, value: id }),
            }
            return;
        }
        self.tree.nodes[id].parent = Some((parent, Step::Key("?".to_owned())));
        match &self.tree.nodes[id].kind {
            Kind::Scalar { text, .. } => open.key = Some((text.clone(), position)),
            Kind::Broken => open.key = Some((String::new(), Position { line: 0, column: 0 })),
            Kind::Sequence(_) | Kind::Mapping(_) => {
                open.in_key = true;
                self.fault(id, position, "a key is a plain word, not a list or a mapping");
            }
        }
    }

    fn check_decoration(&mut self, id: NodeId, position: Position, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.fault(id, position, "anchors are not supported");
        }
        if tagged {
            self.fault(id, position, "tags are not supported; write a mapping with one key instead");
        }
    }

    fn fault(&mut self, node: NodeId, position: Position, reason: &str) {
        self.faults.push(Fault { node, position, reason: reason.to_owned() });
    }

    fn fatal(&self, position: Position, reason: String) -> Fatal {
        let path = self.open.last().map(|open| self.tree.path(open.id)).unwrap_or_default();
        Fatal { position, path, reason }
    }
}

fn position(marker: &Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

fn nul(text: &str) -> Option<Position> {
    let before = &text[..text.find('\0')?];
    let line_start = before.rfind('\n').map_or(0, |index| index + 1);
    Some(Position {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    })
}

fn is_word(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}
