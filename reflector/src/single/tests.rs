use serde_json::json;

use super::*;
use crate::scripted::{DEADLINE, Server};

const POD: &str = "/api/v1/namespaces/shop/pods/a";

fn client(server: &Server) -> Client {
    crate::client(server.config()).expect("a client")
}

#[tokio::test]
async fn one_object_is_read_as_far_as_it_is_kept() {
    let server = Server::start().await;
    let client = client(&server);
    assert!(get(&client, POD, Keep::All, DEADLINE).await.expect("an answer").is_none(), "nobody made it");
    let mut asked = server.asked(POD);
    let answering = async {
        let ask = asked.next().await;
        assert_eq!(ask.path, POD);
        ask.answer(200, &json!({"kind": "Pod", "spec": {"nodeName": "n1"}})).await;
    };
    let keep = Keep::Only(&[("spec", Keep::All)]);
    let (found, ()) = tokio::join!(get(&client, POD, keep, DEADLINE), answering);
    assert_eq!(found.expect("an answer"), Some(json!({"spec": {"nodeName": "n1"}})));
}

#[tokio::test]
async fn an_object_that_cannot_be_had_is_an_error_with_its_reason() {
    let server = Server::start().await;
    let client = client(&server);
    let mut asked = server.asked(POD);
    let (found, ()) = tokio::join!(get(&client, POD, Keep::All, DEADLINE), async {
        asked.next().await.refuse(403, "pods is forbidden").await;
    });
    assert!(matches!(found, Err(Trouble::Refused { code: 403, .. })), "{found:?}");
    let (found, ()) = tokio::join!(get(&client, POD, Keep::All, DEADLINE), async {
        asked.next().await.answer_half(&json!({"metadata": {"name": "a"}})).await;
    });
    assert!(matches!(found, Err(Trouble::Broken(_) | Trouble::Unreadable(_))), "{found:?}");
    let short = Duration::from_millis(20);
    let (found, _kept) = tokio::join!(get(&client, POD, Keep::All, short), asked.next());
    assert!(matches!(found, Err(Trouble::Late(_))), "{found:?}");
}

#[tokio::test]
async fn an_object_is_made() {
    let server = Server::start().await;
    let client = client(&server);
    let mut asked = server.asked("events");
    let event = json!({"reason": "NotCaptured"});
    let path = "/api/v1/namespaces/shop/events";
    let (made, ()) = tokio::join!(post(&client, path, &event, DEADLINE), async {
        let ask = asked.next().await;
        assert_eq!((&ask.body, &*ask.path), (&event, path));
        ask.answer(201, &event).await;
    });
    made.expect("it is made");
}
