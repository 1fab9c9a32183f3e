// How do the cards stay true while the page is open? The stream's words go into their places.
// A stream that breaks, or says nothing for SILENCE_MS (it speaks at least every 4 s), leaves every state unknown.
"use strict";

const SILENCE_MS = 10000;
const AGAIN_MS = 2000;
let source = null;
let heardAt = Date.now();

function put(inside, place, text) {
  const found = inside.querySelector(place);
  // Only what differs is written: a screen reader tells every change.
  if (found.textContent !== text) found.textContent = text;
}

function putCard(card, words) {
  if (card.dataset.state !== words.state) {
    card.dataset.state = words.state;
    card.querySelector("use").setAttribute("href", "#" + words.state);
  }
  for (const place of ["word", "detail", "watts", "age"]) put(card, "." + place, words[place]);
  const age = card.querySelector(".age");
  age.dateTime = words.since;
  age.title = words.since ? "since " + words.since : "";
}

function putFloor(floor) {
  const cards = [...document.querySelectorAll(".card")];
  if (cards.map((card) => card.dataset.id).join() !== floor.cards.map((words) => words.id).join()) {
    // The lab has other machines than when this page was made.
    location.reload();
    return;
  }
  cards.forEach((card, place) => putCard(card, floor.cards[place]));
  putLink("live", floor.summary, "Live");
  document.title = floor.summary + " · " + floor.lab;
}

function putLink(link, summary, text) {
  document.body.dataset.link = link;
  put(document, ".summary", summary);
  put(document, ".link", text);
}

function lost() {
  const unknown = { state: "unknown", word: "Unknown", detail: "", watts: "–", age: "", since: "" };
  document.querySelectorAll(".card").forEach((card) => putCard(card, unknown));
  putLink("lost", "States unknown", "Trying again");
  document.title = "Connection lost";
}

function listen() {
  heardAt = Date.now();
  if (source) source.close();
  source = new EventSource("/stream");
  source.onmessage = (message) => {
    heardAt = Date.now();
    putFloor(JSON.parse(message.data));
  };
  source.onerror = () => {
    lost();
    // The browser tries again by itself, but not after a refusal.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS);
  };
}

setInterval(() => {
  if (Date.now() - heardAt > SILENCE_MS) {
    lost();
    listen();
  }
}, 1000);
listen();
