use super::*;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// A nodes file of its own for each test, gone with it.
struct NodesFile(PathBuf);

impl NodesFile {
    fn new(name: &str, text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("nodes-{name}-{}.json", std::process::id())));
        file.replace(text);
        file
    }

    fn replace(&self, text: &str) {
        let new = self.0.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.0).unwrap();
    }
}

impl Drop for NodesFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn one_node(token: &str, identity: &str) -> String {
    format!(r#"{{"nodes":[{{"name":"node1","token":"{token}","identities":["{identity}"]}}]}}"#)
}

#[test]
fn a_node_is_known_by_its_token_and_may_ask_for_its_own_pods() {
    let file = NodesFile::new("known", &one_node("t1", CART));
    let nodes = Nodes::open(&file.0).unwrap();
    let node = nodes.authenticate("t1").unwrap();
    assert_eq!(node.name, "node1");
    assert!(node.may_ask_for(&CART.parse().unwrap()));
    assert!(!node.may_ask_for(&"spiffe://cluster.local/ns/shop/sa/bank".parse().unwrap()));
    for other in ["", "t", "t11", "T1"] {
        assert!(nodes.authenticate(other).is_none(), "{other:?} is no token");
    }
}

#[test]
fn a_changed_file_counts_at_once_and_a_broken_one_not_at_all() {
    let file = NodesFile::new("changed", &one_node("t1", CART));
    let nodes = Nodes::open(&file.0).unwrap();
    file.replace(&one_node("t2", CART));
    assert!(nodes.authenticate("t1").is_none());
    assert!(nodes.authenticate("t2").is_some());
    file.replace("{");
    assert!(nodes.authenticate("t2").is_some(), "the last good file stays in force");
    fs::remove_file(&file.0).unwrap();
    assert!(nodes.authenticate("t2").is_some());
    file.replace(&one_node("t3", CART));
    assert!(nodes.authenticate("t3").is_some());
}

#[test]
fn all_mistakes_of_a_file_are_told_without_any_token() {
    let text = r#"{"nodes":[
        {"name":"a","token":"secret","identities":["spiffe://x"]},
        {"name":"a","token":"secret","identities":[]},
        {"name":"","token":"","identities":[]}]}"#;
    let file = NodesFile::new("mistakes", text);
    let error = Nodes::open(&file.0).unwrap_err().to_string();
    for part in
        ["spiffe://x", "node a is there twice", "another node's", "no name", "is empty", "nodes-mistakes"]
    {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    assert!(!error.contains("secret"), "{error}");
    let file = NodesFile::new("unknown-key", r#"{"nodes":[{"name":"a","tokens":"x","identities":[]}]}"#);
    let error = Nodes::open(&file.0).unwrap_err().to_string();
    assert!(error.contains("tokens") && error.contains("line 1"), "{error}");
}

#[tokio::test]
async fn a_token_may_have_an_end_and_its_end_is_told() {
    let text = r#"{"nodes":[
        {"name":"a","token":"old","expires":"2020-01-01T00:00:00Z","identities":[]},
        {"name":"b","token":"new","expires":"2999-01-01T00:00:00+02:00","identities":["spiffe://cluster.local/ns/shop/sa/cart"]}]}"#;
    let file = NodesFile::new("expiry", text);
    let nodes = Nodes::open(&file.0).unwrap();
    assert!(nodes.authenticate("old").is_none());
    let refused = nodes.node("old").await.unwrap_err();
    assert!(refused.to_string().starts_with("the bearer token of node a expired "), "{refused}");
    assert_eq!(nodes.node("none").await, Err(Refused::Unknown));
    let proven = nodes.node("new").await.unwrap();
    assert!(proven.node == "b" && proven.expires.is_some_and(|end| end > SystemTime::now()), "{proven:?}");
    assert!(nodes.may_hold("b", &CART.parse().unwrap()));
    assert!(!nodes.may_hold("a", &CART.parse().unwrap()));
    let file = NodesFile::new("expiry-wrong", &text.replace("2020-01-01T00:00:00Z", "soon"));
    let error = Nodes::open(&file.0).unwrap_err().to_string();
    assert!(error.contains("node a") && error.contains("soon"), "{error}");
}

/// Knows one token.
struct Knows(&'static str, Refused);

#[tonic::async_trait]
impl Authenticate for Knows {
    async fn node(&self, token: &str) -> Result<Proven, Refused> {
        if token == self.0 {
            Ok(Proven { node: self.0.to_owned(), expires: None })
        } else {
            Err(self.1.clone())
        }
    }
}

#[tokio::test]
async fn of_several_the_first_that_knows_a_token_decides() {
    let away = Refused::Unavailable { reason: "away".to_owned() };
    let any = AnyOf(vec![Arc::new(Knows("a", Refused::Unknown)), Arc::new(Knows("b", away.clone()))]);
    assert_eq!(any.node("a").await.unwrap().node, "a");
    assert_eq!(any.node("b").await.unwrap().node, "b");
    assert_eq!(any.node("c").await, Err(away));
    assert_eq!(AnyOf(Vec::new()).node("a").await, Err(Refused::Unknown));
}
