// Exchanges the code of a one-time link for a session. The code stands in the fragment, which no
// server and no Referer ever sees, and is taken out of the history at once.
"use strict";

const state = document.getElementById("state");

function say(text, failed) {
  state.textContent = text;
  state.classList.toggle("failed", failed);
}

/** A path of this console to go on to; anything else would lead elsewhere. */
function next(parameters) {
  const path = parameters.get("next") ?? "/";
  return /^\/(?![/\\])/.test(path) ? path : "/";
}

async function signIn() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const code = parameters.get("code");
  history.replaceState(null, "", "/login");
  if (!code) {
    return;
  }
  say("Signing in …", false);
  let answer;
  try {
    answer = await fetch("/v1/console/login", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ code }),
    });
  } catch {
    say("The server does not answer. Is the app running?", true);
    return;
  }
  if (answer.ok) {
    location.replace(next(parameters));
    return;
  }
  const problem = await answer.json().catch(() => null);
  say(problem?.message ?? `The server answered ${answer.status}.`, true);
}

signIn();
addEventListener("hashchange", signIn);
