/** The example page: signs a development user in, starts a job, shows its progress. */

const provider = document.querySelector("credits-provider");
const form = document.querySelector("#sign-in");
const start = document.querySelector("#start");
const cost = document.querySelector("#cost");
const job = document.querySelector("#job");
const progress = document.querySelector("#progress");
const state = document.querySelector("#job-state");
const stems = document.querySelector("#stems");

const user = () => localStorage.getItem("user");

function show() {
  const signedIn = Boolean(user());
  document.querySelector("#signed-in").hidden = !signedIn;
  document.querySelector("#signed-out").hidden = signedIn;
  document.querySelector("#sign-out").hidden = !signedIn;
  form.elements.user.value = user() ?? form.elements.user.value;
  form.elements.user.readOnly = signedIn;
  form.querySelector("button:not([type])").hidden = signedIn;
  // A development user's token is the user's id; a real app gives its session's access token.
  provider.token = async () => user();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  localStorage.setItem("user", form.elements.user.value.trim().toLowerCase());
  show();
});

document.querySelector("#sign-out").addEventListener("click", () => {
  localStorage.removeItem("user");
  job.hidden = true;
  show();
});

async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${user()}`, "Content-Type": "application/json" };
  const response = await fetch(path, { ...options, headers });
  const body = await response.json();
  if (!response.ok) throw Object.assign(new Error(body.detail), { problem: { ...body, status: response.status } });
  return body;
}

// A job cannot start before its price is shown.
cost.addEventListener("credits-quote", () => start.removeAttribute("aria-disabled"));

start.addEventListener("click", async () => {
  if (start.getAttribute("aria-disabled") === "true") return;
  start.setAttribute("aria-disabled", "true");
  stems.replaceChildren();
  state.textContent = "";
  const name = crypto.randomUUID();
  try {
    await ask("/jobs", { method: "POST", body: JSON.stringify({ job: name, expected_cost: cost.quote.total }) });
    await follow(name);
  } catch (error) {
    if (error.problem?.reason === "INSUFFICIENT_CREDITS") provider.refuse(error.problem);
    else if (error.problem?.reason === "PRICE_CHANGED") cost.items = cost.getAttribute("items");
    job.hidden = error.problem?.reason === "INSUFFICIENT_CREDITS";
    state.textContent = error.message;
  } finally {
    start.removeAttribute("aria-disabled");
  }
});

async function follow(name) {
  job.hidden = false;
  progress.removeAttribute("value");
  state.textContent = "Separating…";
  for (;;) {
    const { state: now, written, total, stems: files } = await ask(`/jobs/${name}`);
    if (total) {
      progress.max = total;
      progress.value = written;
    }
    if (now === "done") {
      state.textContent = "Done. You have paid for this separation.";
      stems.replaceChildren(
        ...files.map((file, at) => {
          const audio = document.createElement("audio");
          audio.controls = true;
          audio.src = file;
          audio.setAttribute("aria-label", ["Mid", "Side"][at]);
          return audio;
        }),
      );
      return;
    }
    if (now === "failed") {
      state.textContent = "The separation failed. Your credits are back.";
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

const offered = new URL(location.href).searchParams.get("user");
if (offered) form.elements.user.value = offered;
show();
