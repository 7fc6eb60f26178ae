
"use strict";
const said = document.getElementById("said");

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // there is no such thing without HTTPS: the old way
  }
  const field = document.createElement("textarea");
  field.className = "away";
  field.value = text;
  document.body.append(field);
  field.select();
  const give = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
  };
  document.addEventListener("copy", give);
  try {
    return document.execCommand("copy");
  } finally {
    document.removeEventListener("copy", give);
    field.remove();
  }
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy);
    const done = await copy(text.textContent);
    button.focus();
    button.textContent = done ? "Copied" : "Select it";
    said.textContent = done ? "Copied" : "It could not be copied: select the text";
    if (!done) {
      text.closest("details").open = true;
      getSelection().selectAllChildren(text);
    }
    setTimeout(() => { button.textContent = "Copy"; said.textContent = ""; }, 2000);
  });
}

const drawn = Date.parse(document.querySelector("time").textContent.replace(" ", "T"));
document.getElementById("old").hidden = Date.now() - drawn < 2 * 60 * 60 * 1000;
