"""The pages on which people judge: what they ask of the server. Whoever has the token may use them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from rlhf.chat.http import Unjudgeable, is_same
from rlhf.config.errors import ConfigError
from rlhf.config.pages import make_environment

# Nothing is loaded from elsewhere, and nothing is sent there.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
TOKEN = "X-Token"


class Site(Protocol):
    """What stands behind a page: the file of the page, what it may ask for, and answers that are streamed."""

    html: str

    def act(self, action: str, given: dict[str, Any]) -> dict[str, Any]:
        """Carry out what the page asks for, and return what it shows then. Raises Unjudgeable."""

    def stream(self, given: dict[str, Any]) -> Iterator[str]:
        """Yield an answer as JSON Lines. Raises Unjudgeable."""


def build_page(site: Site, token: str) -> Any:
    """Return the application that serves the page."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.concurrency import run_in_threadpool

    app = FastAPI(title="rlhf", docs_url=None, redoc_url=None, openapi_url=None)
    page = make_environment(Path(__file__).parent).get_template(site.html).render()

    @app.exception_handler(Unjudgeable)
    @app.exception_handler(ConfigError)
    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    async def read(request: Request) -> dict[str, Any]:
        try:
            found = await request.json()
        except ValueError as error:
            raise Unjudgeable("the request cannot be read") from error
        if not isinstance(found, dict):
            raise Unjudgeable("the request cannot be read")
        return found

    @app.get("/")
    async def show(request: Request) -> Response:
        if not is_same(request.query_params.get("token"), token):
            return HTMLResponse("Open the address that the program printed, with its token.", 403, HEADERS)
        return HTMLResponse(page, headers=HEADERS)

    @app.post("/api/{action}")
    async def act(request: Request, action: str) -> Response:
        if not is_same(request.headers.get(TOKEN), token):
            return JSONResponse({"error": "the token is missing or wrong"}, 403)
        given = await read(request)
        if action == "stream":
            return StreamingResponse(site.stream(given), media_type="application/x-ndjson", headers=HEADERS)
        return JSONResponse(await run_in_threadpool(site.act, action, given), headers=HEADERS)

    return app
