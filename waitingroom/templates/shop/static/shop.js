"use strict";
const stock = document.querySelector("[data-live]");
if (stock) {
  const url = new URL(stock.dataset.live, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  socket.onmessage = ({ data }) => {
    const { left, watching } = JSON.parse(data);
    stock.querySelector("[data-left]").textContent = left.toLocaleString("en");
    stock.querySelector("progress").value = left;
    stock.querySelector("[data-watching]").textContent = watching > 1 ? `· ${watching} people are looking` : "";
  };
}
const sold = document.querySelector("[data-sold] b");
if (sold) {
  const orders = new EventSource("/orders");
  orders.onmessage = ({ data }) => { sold.textContent = data; };
  addEventListener("pagehide", () => orders.close());
}
