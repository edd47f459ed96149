//! Tokens that come after the upgrade: nothing is done, and nothing revealed, before.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use tracing::debug;

use super::answer::{Answer, status_answer};
use super::request::Asked;
use super::{Aborted, BAD_HANDSHAKE, DRAINING, Router, start};
use crate::config::Reject;
use crate::session::ServedRoute;
use crate::websocket;

impl Router {
    /// Accepts, waits for the token, and goes on as with any request.
    pub(super) fn wait_for_token<H: Send + Sync + 'static>(
        self: &Arc<Self>,
        client: IpAddr,
        route: Arc<ServedRoute>,
        mut request: Request<Incoming>,
        asked: Asked,
        held: H,
    ) -> Result<Answer, Aborted> {
        if let Err(refusal) = self.check(request.headers(), &asked) {
            self.count(route.name(), refusal.reason);
            return self.refuse(&mut request, &asked, refusal, held);
        }
        let Ok((answer, socket)) = self.upgrade(&mut request, &asked, route.max_client_message())
        else {
            return Ok(status_answer(&BAD_HANDSHAKE));
        };
        let (parts, _) = request.into_parts();
        let router = self.clone();
        self.tasks.spawn("first message", async move {
            let deadline = router.config.server.handshake_timeout;
            let Some(socket) = socket.await else { return };
            let first = websocket::first_message(socket, deadline, router.drain.refusing()).await;
            let Some((mut socket, token)) = first else {
                return;
            };
            let admitted = match token {
                Ok(token) => tokio::select! {
                    admitted = router.admit(&route, &parts, &asked, Some(&token)) => admitted,
                    () = router.drain.refusing() => Err(DRAINING),
                    left = websocket::left(&mut socket) => {
                        debug!("a client left while it was looked at");
                        return websocket::part(socket, left).await;
                    }
                },
                Err(websocket::NoToken::Missing) => Err(router.authority.missing().refusal()),
                Err(websocket::NoToken::Draining) => Err(DRAINING),
            };
            router.note_admission(client, &route, &admitted);
            match admitted {
                Ok(admitted) => {
                    let session =
                        router.session(&route, &parts.uri, &parts.headers, admitted, held);
                    start(&router.tasks, socket, session);
                }
                Err(_) if router.config.auth.reject == Reject::Abort => socket.reset(),
                Err(refusal) => websocket::refuse(socket, refusal).await,
            }
        });
        Ok(answer)
    }
}
