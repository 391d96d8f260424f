const token = new URLSearchParams(location.search).get("token");
const find = (id) => document.getElementById(id);
let session = null;

async function post(action, content) {
  const reply = await fetch("/api/" + action, {
    method: "POST", headers: {"Content-Type": "application/json", "X-Token": token},
    body: JSON.stringify({session, ...content}),
  });
  if (!reply.ok) throw new Error((await reply.json()).error);
  return reply;
}

async function attempt(work) {
  find("error").textContent = "";
  try { await work(); } catch (error) { find("error").textContent = error.message; }
}

function add(parent, tag, text, className) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}
