use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::tests::store::{Fault, Store};
use super::*;

fn reviewer(store: &Store) -> Reviewer {
    Reviewer::new(store.api(), "istio-ca".to_owned(), vec![Name::new("ztunnel-system", "ztunnel")])
}

/// What the API server says of a proxy's token.
fn good() -> Value {
    json!({"status": {
        "authenticated": true,
        "audiences": ["istio-ca"],
        "user": {
            "username": "system:serviceaccount:ztunnel-system:ztunnel",
            "uid": "1", "groups": ["system:serviceaccounts"],
            "extra": {NODE_NAME: ["n1"], POD_NAME: ["ztunnel-x"], POD_UID: ["u1"]},
        },
    }})
}

fn says(store: &Store, review: Value) {
    store.answer("/tokenreviews", move |_| (201, review.clone()));
}

fn token(claims: &Value) -> String {
    format!("e30.{}.sig", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn refused(answer: Result<Proven, Refused>) -> Refused {
    answer.expect_err("it is refused")
}

#[tokio::test]
async fn a_proxys_token_proves_its_node_until_it_is_over() {
    let store = Store::start().await;
    says(&store, good());
    let token = token(&json!({"exp": 4_000_000_000_u64}));
    let proven = reviewer(&store).node(&token).await.expect("it is good");
    assert_eq!(proven.node, "n1");
    assert_eq!(proven.expires, Some(UNIX_EPOCH + Duration::from_secs(4_000_000_000)));
    let asked = store.asked("POST", "/apis/authentication.k8s.io/v1/tokenreviews");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].body["spec"], json!({"token": token, "audiences": ["istio-ca"]}));
    assert_eq!(asked[0].kind, "application/json");
}

#[tokio::test]
async fn what_the_api_server_does_not_vouch_for_is_refused() {
    let with = |change: fn(&mut Value)| {
        let mut review = good();
        change(&mut review["status"]);
        review
    };
    let account = |name: &'static str| {
        let mut review = good();
        review["status"]["user"]["username"] = name.into();
        review
    };
    for (review, expected) in [
        (with(|status| status["authenticated"] = false.into()), Refused::Unknown),
        (with(|status| *status = json!({"error": "invalid bearer token"})), Refused::Unknown),
        (with(|status| status["audiences"] = json!(["other"])), Refused::Unknown),
        (with(|status| status["audiences"] = json!([])), Refused::Unknown),
        (with(|status| status["user"]["extra"] = json!({})), Refused::Unknown),
        (
            account("system:serviceaccount:shop:cart"),
            Refused::NoProxy { account: "system:serviceaccount:shop:cart".into() },
        ),
        (
            account("system:serviceaccount:shop:ztunnel"),
            Refused::NoProxy { account: "system:serviceaccount:shop:ztunnel".into() },
        ),
        (account("admin"), Refused::NoProxy { account: "admin".into() }),
        (account("ztunnel-system:ztunnel"), Refused::NoProxy { account: "ztunnel-system:ztunnel".into() }),
    ] {
        let store = Store::start().await;
        says(&store, review.clone());
        assert_eq!(refused(reviewer(&store).node("t").await), expected, "{review}");
    }
    let store = Store::start().await;
    let reviewer = reviewer(&store);
    assert_eq!(refused(reviewer.node("").await), Refused::Unknown);
    assert_eq!(refused(reviewer.node(&"x".repeat(LONGEST + 1)).await), Refused::Unknown);
    let over = refused(reviewer.node(&token(&json!({"exp": 1_000_000}))).await);
    assert!(matches!(over, Refused::Expired { node: None, ago_s } if ago_s > 1_000_000_000), "{over}");
    assert!(store.asked("POST", "").is_empty(), "no question is needed for these");
}

#[tokio::test]
async fn an_older_token_proves_the_node_of_the_pod_that_it_is_bound_to() {
    let mut review = good();
    review["status"]["user"]["extra"][NODE_NAME] = json!([]);
    let pod = json!({"metadata": {"uid": "u1"}, "spec": {"nodeName": "n7", "serviceAccountName": "ztunnel"}});
    let path = "/api/v1/namespaces/ztunnel-system/pods/ztunnel-x";
    let with = |part: &str, key: &str, value: &str| {
        let mut pod = pod.clone();
        pod[part][key] = value.into();
        pod
    };
    for (pod, expected) in [
        (Some(pod.clone()), Some("n7")),
        (Some(with("metadata", "uid", "u2")), None),
        (Some(with("spec", "serviceAccountName", "other")), None),
        (Some(with("spec", "nodeName", "")), None),
        (None, None),
    ] {
        let store = Store::start().await;
        says(&store, review.clone());
        if let Some(pod) = &pod {
            store.put(path, pod.clone());
        }
        let proven = reviewer(&store).node("t").await;
        assert_eq!(proven.map(|proven| proven.node).ok().as_deref(), expected, "{pod:?}");
        assert_eq!(store.asked("GET", path).len(), 1);
    }
    review["status"]["user"]["extra"][POD_NAME] = json!(["../../secrets/x"]);
    let store = Store::start().await;
    says(&store, review);
    assert!(matches!(refused(reviewer(&store).node("t").await), Refused::Unavailable { .. }));
    assert!(store.asked("GET", "").is_empty(), "it became no path");
}

#[tokio::test]
async fn many_calls_with_one_token_are_one_question() {
    let store = Store::start().await;
    says(&store, good());
    let reviewer = Arc::new(reviewer(&store));
    let all = (0..300).map(|_| {
        let reviewer = Arc::clone(&reviewer);
        tokio::spawn(async move { reviewer.node("t").await })
    });
    for one in futures::future::join_all(all).await {
        assert_eq!(one.expect("no panic").expect("it is good").node, "n1");
    }
    assert_eq!(store.asked("POST", "").len(), 1);
    reviewer.node("u").await.expect("it is good");
    assert_eq!(store.asked("POST", "").len(), 2, "another token is another question");
}

/// As if the time for which the answer is held to were over.
async fn forget(reviewer: &Reviewer, held_to: Duration) {
    let slot = reviewer.slot("t").expect("there is room");
    let mut known = slot.lock().await;
    let known = known.as_mut().expect("it was asked about");
    let left = known.until.saturating_duration_since(Instant::now());
    assert!(left <= held_to && left > held_to / 2, "{left:?}");
    known.until = Instant::now();
}

#[tokio::test]
async fn a_withdrawn_token_is_refused_soon_and_a_late_one_known_soon() {
    let store = Store::start().await;
    let good_now = Arc::new(AtomicUsize::new(1));
    let now = Arc::clone(&good_now);
    store.answer("/tokenreviews", move |_| match now.load(Ordering::Relaxed) {
        1 => (201, good()),
        _ => (201, json!({"status": {"authenticated": false}})),
    });
    let reviewer = reviewer(&store);
    reviewer.node("t").await.expect("it is good");
    good_now.store(0, Ordering::Relaxed);
    reviewer.node("t").await.expect("it is held to");
    forget(&reviewer, GOOD).await;
    assert_eq!(refused(reviewer.node("t").await), Refused::Unknown);
    good_now.store(1, Ordering::Relaxed);
    assert_eq!(refused(reviewer.node("t").await), Refused::Unknown, "that too is held to");
    forget(&reviewer, BAD).await;
    reviewer.node("t").await.expect("it is good");
}

#[tokio::test]
async fn a_server_that_is_away_stalls_or_talks_nonsense_is_no_judgement() {
    let mut store = Store::start().await;
    says(&store, good());
    let api = store.api_within(Duration::from_millis(300));
    let reviewer = Reviewer::new(api, "istio-ca".to_owned(), vec![Name::new("ztunnel-system", "ztunnel")]);
    for (at, (fault, told)) in [
        (Fault::Stall, "does not answer within 300ms"),
        (Fault::Hang, "cannot be reached"),
        (Fault::Say("secret-token no JSON".to_owned()), "no JSON at line 1, column 1"),
        (Fault::Say("[]".to_owned()), "it is no object"),
        (Fault::Say("{\"status\":[]}".to_owned()), "TokenReview"),
        (Fault::Say("{\"status\":{\"authenticated\":\"yes\"}}".to_owned()), "TokenReview"),
        (Fault::Refuse(429, "slow down"), "429 slow down"),
        (Fault::Refuse(500, "etcd"), "500 etcd"),
        (
            Fault::Refuse(403, "forbidden"),
            "cannot create tokenreviews in the cluster: 403; the ClusterRole of the controller's service account needs the \
             verb create on tokenreviews of the API group \"authentication.k8s.io\"",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        store.fail("POST", "tokenreviews", fault.clone());
        let answer = refused(reviewer.node(&format!("t{at}")).await);
        assert!(matches!(&answer, Refused::Unavailable { reason } if reason.contains(told)), "{fault:?}: {answer}");
        assert!(!answer.to_string().contains("secret-token"), "{answer}");
        assert_eq!(answer.code(), tonic::Code::Unavailable);
    }
    store.go_away().await;
    let away = refused(reviewer.node("away").await);
    assert!(
        matches!(&away, Refused::Unavailable { reason } if reason.contains("cannot be reached")),
        "{away}"
    );
    store.come_back().await;
    reviewer.node("t").await.expect("it is good");
}

#[tokio::test]
async fn a_flood_of_tokens_costs_bounded_room_and_displaces_no_good_one() {
    let store = Store::start().await;
    let reviewer = reviewer(&store);
    let known = |answer| Some(Known { until: Instant::now() + GOOD, answer });
    for number in 0..REMEMBERED {
        let answer = match number {
            0 => Ok(Proven { node: "n1".to_owned(), expires: None }),
            _ => Err(Refused::Unknown),
        };
        *reviewer.slot(&number.to_string()).expect("there is room").lock().await = known(answer);
    }
    assert_eq!(
        refused(reviewer.node("one more").await).code(),
        tonic::Code::Unavailable,
        "it was asked about"
    );
    assert_eq!(store.asked("POST", "").len(), 1);
    assert_eq!(reviewer.remembered.lock().expect("no panic").len(), 2);
    assert_eq!(reviewer.node("0").await.expect("it is held to").node, "n1");
    assert_eq!(store.asked("POST", "").len(), 1);
}
