use serde_json::json;

use super::*;

mod policies;

fn proxies() -> Vec<Proxy> {
    let workload = |status: &str| {
        json!({
            "uid": "c//Pod/shop/cart", "name": "cart", "namespace": "shop", "workloadIps": ["10.0.0.1", "fd00::1"],
            "node": "n2", "protocol": "HBONE", "serviceAccount": "cart", "status": status,
            "services": ["shop/cart.svc"], "authorizationPolicies": ["shop/named"],
        })
    };
    let policy = |name: &str, scope: &str| {
        json!({
            "name": name, "namespace": "shop", "scope": scope, "action": "Deny", "dryRun": false, "rules": [[], []],
        })
    };
    let dump = |status: &str| {
        json!({
            "version": {"version": "1.2.3"},
            "discovery": {"state": "connected"},
            "workloads": [workload(status), {"uid": "c//Pod/web/web", "name": "web", "namespace": "web"}],
            "services": [{
                "name": "cart", "namespace": "shop", "hostname": "cart.svc", "vips": ["/10.9.0.1"],
                "cidrVips": [{"network": "far", "cidr": "10.8.0.0/16"}], "ports": {"80": 8080, "81": 0},
                "endpoints": {
                    "a": {"workloadUid": "a", "port": {}, "status": "Healthy"},
                    "b": {"workloadUid": "b", "port": {}, "status": "Unhealthy"},
                },
            }],
            "policies": [policy("named", "WorkloadSelector"), policy("all", "Global"), policy("here", "Namespace")],
            "certificates": [{
                "identity": "spiffe://td/ns/shop/sa/cart", "state": "Available",
                "certChain": [{"serialNumber": "7", "validFrom": "then", "expirationTime": "soon"}],
                "rootCerts": [{"serialNumber": "1"}, {"serialNumber": "2"}],
            }],
            "workloadState": {
                "a": {"state": "Up", "connections": {"inbound": [{}, {}], "outbound": [{}]}},
                "b": {"state": "Pending", "connections": {"inbound": [], "outbound": []}},
            },
        })
    };
    let proxy = |node: &str, ready, dump| Proxy { node: node.to_owned(), ready, dump };
    vec![
        proxy("n1", true, Some(dump("Healthy"))),
        proxy("n2", false, Some(dump("Unhealthy"))),
        proxy("n3", false, None),
    ]
}

fn table<R: Row>(rows: &[R]) -> Vec<String> {
    let mut table = Table::new(R::COLUMNS);
    rows.iter().for_each(|row| table.add(row.cells()));
    lines(&table)
}

fn lines(table: &Table) -> Vec<String> {
    table.to_string().lines().skip(1).map(str::to_owned).collect()
}

#[test]
fn workloads_that_nodes_see_differently_stand_apart() {
    let rows = workloads::rows(&proxies(), |namespace| namespace == "shop");
    assert_eq!(
        table(&rows),
        [
            "shop       cart  10.0.0.1,fd00::1  n2    HBONE     cart     Healthy    shop/named  n1",
            "shop       cart  10.0.0.1,fd00::1  n2    HBONE     cart     Unhealthy  shop/named  n2",
        ]
    );
    let everywhere = workloads::rows(&proxies(), |namespace| namespace == "web");
    assert_eq!(
        table(&everywhere),
        ["web        web   -          -     -         -        -       -         all"]
    );
}

#[test]
fn services_count_their_endpoints() {
    let rows = services::rows(&proxies(), |_| true);
    assert_eq!(
        table(&rows),
        ["shop       cart  cart.svc  /10.9.0.1,far/10.8.0.0/16  80:8080,81:0  1/2        all"]
    );
}

#[test]
fn certificates_belong_to_the_namespace_of_their_identity() {
    assert_eq!(certificates::rows(&proxies(), |namespace| namespace == "web").len(), 0);
    let rows = certificates::rows(&proxies(), |namespace| namespace == "shop");
    assert_eq!(
        table(&rows)[0],
        "n1    spiffe://td/ns/shop/sa/cart  Available  7       then        soon     2"
    );
    assert_eq!(rows.len(), 2);
}

#[test]
fn a_proxy_that_is_silent_is_shown() {
    assert_eq!(
        table(&status::rows(&proxies())),
        [
            "n1    ready      1.2.3    connected  2          1         3         1/1           1/2   3",
            "n2    not ready  1.2.3    connected  2          1         3         1/1           1/2   3",
            "n3    no answer  -        -          0          0         0         0/0           0/0   0",
        ]
    );
}
