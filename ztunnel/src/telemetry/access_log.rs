//! The two forms of a log line (interop.md section 11.3). The access log is the lines of target `access`; every other
//! line has the same form.
//!
//! Plain: time, level, scope with its spans, message, then `key=value` with texts quoted; the parts separated by tabs.
//! JSON: one flat object with the keys in that order, spans as nested objects. Values may come from strangers, so
//! nothing in them can end a line or an object.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// The layer that writes lines; `timer` tells the time in RFC 3339 with microseconds.
pub(super) fn layer<S, W, T>(json: bool, timer: T, writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    T: FormatTime + Send + Sync + 'static,
{
    let form = if json { Form::Json } else { Form::Plain };
    tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .fmt_fields(form)
        .event_format(Line { form, timer })
        .with_writer(writer)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Json,
}

struct Line<T> {
    form: Form,
    timer: T,
}

impl<S, N, T> FormatEvent<S, N> for Line<T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    T: FormatTime,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let meta = event.metadata();
        let scope = meta.target().strip_prefix("ztunnel::").unwrap_or(meta.target());
        match self.form {
            Form::Plain => {
                self.timer.format_time(&mut out)?;
                write!(out, "\t{}\t{scope}", level(*meta.level()))?;
                self.spans(context, &mut out)?;
                let mut fields = Fields::event(&mut out, self.form);
                event.record(&mut fields);
                fields.finish()?;
            }
            Form::Json => {
                write!(out, "{{\"level\":\"{}\",\"time\":\"", level(*meta.level()))?;
                self.timer.format_time(&mut out)?;
                out.write_str("\",\"scope\":")?;
                json_text(&mut out, scope)?;
                let mut fields = Fields::event(&mut out, self.form);
                event.record(&mut fields);
                fields.finish()?;
                self.spans(context, &mut out)?;
                out.write_char('}')?;
            }
        }
        out.write_char('\n')
    }
}

impl<T> Line<T> {
    fn spans<S, N>(&self, context: &FmtContext<'_, S, N>, out: &mut Writer<'_>) -> fmt::Result
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
    {
        let Some(spans) = context.event_scope() else { return Ok(()) };
        for span in spans.from_root() {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.fields.as_str());
            match self.form {
                Form::Plain if fields.is_empty() => write!(out, ":{}", span.name())?,
                Form::Plain => write!(out, ":{}{{{fields}}}", span.name())?,
                Form::Json => {
                    out.write_char(',')?;
                    json_text(out, span.name())?;
                    write!(out, ":{{{fields}}}")?;
                }
            }
        }
        Ok(())
    }
}

/// Fields of a span, kept until its events are written.
impl<'w> FormatFields<'w> for Form {
    fn format_fields<R: RecordFields>(&self, mut out: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Fields::span(&mut out, *self, true);
        fields.record(&mut visitor);
        visitor.finish()
    }

    fn add_fields(
        &self,
        current: &'w mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        let first = current.fields.is_empty();
        let mut out = current.as_writer();
        let mut visitor = Fields::span(&mut out, *self, first);
        fields.record(&mut visitor);
        visitor.finish()
    }
}

/// Writes each field as it comes.
struct Fields<'a, 'w> {
    out: &'a mut Writer<'w>,
    form: Form,
    in_event: bool,
    first: bool,
    result: fmt::Result,
}

impl<'a, 'w> Fields<'a, 'w> {
    fn event(out: &'a mut Writer<'w>, form: Form) -> Self {
        Self { out, form, in_event: true, first: true, result: Ok(()) }
    }

    fn span(out: &'a mut Writer<'w>, form: Form, first: bool) -> Self {
        Self { out, form, in_event: false, first, result: Ok(()) }
    }

    fn put(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'w>) -> fmt::Result) {
        if self.result.is_ok() {
            self.result = self.key(field.name()).and_then(|()| value(self.out));
        }
    }

    /// What stands before a value: the separator and the key. The message of a plain line has no key.
    fn key(&mut self, name: &str) -> fmt::Result {
        let first = std::mem::replace(&mut self.first, false);
        let message = self.in_event && name == "message";
        match self.form {
            Form::Json => {
                if self.in_event || !first {
                    self.out.write_char(',')?;
                }
                json_text(self.out, name)?;
                self.out.write_char(':')
            }
            Form::Plain if message => self.out.write_char('\t'),
            Form::Plain => {
                let after_message = self.in_event && std::mem::replace(&mut self.in_event, false);
                match (after_message, first) {
                    (true, true) => self.out.write_str("\t\t")?,
                    (true, false) => self.out.write_char('\t')?,
                    (false, true) => {}
                    (false, false) => self.out.write_char(' ')?,
                }
                write!(self.out, "{name}=")
            }
        }
    }
}

impl VisitOutput<fmt::Result> for Fields<'_, '_> {
    fn finish(self) -> fmt::Result {
        self.result
    }
}

impl Visit for Fields<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let form = self.form;
        self.put(field, |out| match form {
            Form::Plain => write!(Escaped { out, json: false }, "{value:?}"),
            Form::Json => {
                out.write_char('"')?;
                write!(Escaped { out, json: true }, "{value:?}")?;
                out.write_char('"')
            }
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let message = self.in_event && field.name() == "message";
        match self.form {
            Form::Plain if message => self.put(field, |out| Escaped { out, json: false }.write_str(value)),
            Form::Plain => self.put(field, |out| write!(out, "{value:?}")),
            Form::Json => self.put(field, |out| json_text(out, value)),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() || self.form == Form::Plain {
            self.put(field, |out| write!(out, "{value}"));
        } else {
            self.put(field, |out| out.write_str("null"));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &value.to_string());
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn json_text(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    out.write_char('"')?;
    Escaped { out, json: true }.write_str(text)?;
    out.write_char('"')
}

/// Passes text on with control characters (and in JSON, quotes and backslashes) escaped.
struct Escaped<'a, 'w> {
    out: &'a mut Writer<'w>,
    json: bool,
}

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let special = |c: char| c.is_control() || (self.json && matches!(c, '"' | '\\'));
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|&(_, c)| special(c)) {
            self.out.write_str(&rest[..at])?;
            match c {
                '"' => self.out.write_str("\\\"")?,
                '\\' => self.out.write_str("\\\\")?,
                '\n' => self.out.write_str("\\n")?,
                '\r' => self.out.write_str("\\r")?,
                '\t' => self.out.write_str("\\t")?,
                c => write!(self.out, "\\u{:04x}", u32::from(c))?,
            }
            rest = &rest[at + c.len_utf8()..];
        }
        self.out.write_str(rest)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info, info_span};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    struct Noon;

    impl FormatTime for Noon {
        fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
            out.write_str("2026-01-02T12:00:00.000001Z")
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `act` logs.
    pub(in super::super) fn lines(json: bool, act: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::registry().with(layer(json, Noon, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, act);
        let bytes = sink.0.lock().expect("no test panics with it").clone();
        let text = String::from_utf8(bytes).expect("lines are UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    fn act() {
        info!(target: "ztunnel::proxy::inbound", "hello");
        let outer = info_span!("outer", id = "a\"b", n = tracing::field::Empty);
        let _in_outer = outer.enter();
        outer.record("n", 3);
        let _in_inner = info_span!("inner").entered();
        debug!(
            target: "h2",
            text = "two\nlines\u{1b}[0m",
            shown = %"raw\n\"x\"",
            count = 3,
            less = -1,
            yes = true,
            ratio = 0.5,
            absent = None::<u64>,
            "it is {}\t{}", 1, "\"q\""
        );
        info!(target: "bare", only = 1);
        info!(target: "ztunnel", parent: None, "top");
    }

    #[test]
    fn plain_golden() {
        let expected = [
            "2026-01-02T12:00:00.000001Z\tinfo\tproxy::inbound\thello",
            "2026-01-02T12:00:00.000001Z\tdebug\th2:outer{id=\"a\\\"b\" n=3}:inner\tit is 1\\t\"q\"\t\
             text=\"two\\nlines\\u{1b}[0m\" shown=raw\\n\"x\" count=3 less=-1 yes=true ratio=0.5",
            "2026-01-02T12:00:00.000001Z\tinfo\tbare:outer{id=\"a\\\"b\" n=3}:inner\t\tonly=1",
            "2026-01-02T12:00:00.000001Z\tinfo\tztunnel\ttop",
        ];
        assert_eq!(lines(false, act), expected);
    }

    #[test]
    fn json_golden() {
        let found = lines(true, act);
        let expected = [
            r#"{"level":"info","time":"2026-01-02T12:00:00.000001Z","scope":"proxy::inbound","message":"hello"}"#,
            concat!(
                r#"{"level":"debug","time":"2026-01-02T12:00:00.000001Z","scope":"h2","#,
                r#""message":"it is 1\t\"q\"","text":"two\nlines\u001b[0m","shown":"raw\n\"x\"","count":3,"less":-1,"#,
                r#""yes":true,"ratio":0.5,"outer":{"id":"a\"b","n":3},"inner":{}}"#
            ),
            concat!(
                r#"{"level":"info","time":"2026-01-02T12:00:00.000001Z","scope":"bare","only":1,"#,
                r#""outer":{"id":"a\"b","n":3},"inner":{}}"#
            ),
            r#"{"level":"info","time":"2026-01-02T12:00:00.000001Z","scope":"ztunnel","message":"top"}"#,
        ];
        assert_eq!(found, expected);
        for line in found {
            serde_json::from_str::<serde_json::Value>(&line).expect("each line is one JSON object");
        }
    }
}
