// What is often built with Node, ws and ioredis: one XREAD BLOCK names all streams, each entry is
// encoded once, and is sent to each connection.
'use strict';

const http = require('node:http');
const Redis = require('ioredis');
const { WebSocketServer } = require('ws');

const redisPort = Number(process.env.REDIS_PORT);
const reader = new Redis({ host: '127.0.0.1', port: redisPort });
const commands = new Redis({ host: '127.0.0.1', port: redisPort });
const streams = new Map(); // key -> { last, sockets }
let reading = false;
let interrupting = false;

function message(id, fields) {
  return Buffer.from(`{"id":"${id}","data":${fields[fields.indexOf('data') + 1]}}`);
}

async function read() {
  reading = true;
  for (;;) {
    const keys = [...streams.keys()];
    const ids = keys.map((key) => streams.get(key).last);
    const reply = await reader.xread('COUNT', 1000, 'BLOCK', 0, 'STREAMS', ...keys, ...ids);
    for (const [key, entries] of reply ?? []) {
      const stream = streams.get(key);
      for (const [id, fields] of entries) {
        stream.last = id;
        const text = message(id, fields);
        for (const socket of stream.sockets) socket.send(text, { binary: false });
      }
    }
  }
}

// The XREAD under way does not name a new stream.
function interrupt() {
  if (interrupting) return;
  interrupting = true;
  setTimeout(async () => {
    interrupting = false;
    commands.client('UNBLOCK', await readerId);
  }, 10);
}

const readerId = reader.client('ID');

function watch(key) {
  let stream = streams.get(key);
  if (!stream) {
    stream = { last: `${Date.now() - 1}-0`, sockets: new Set() };
    streams.set(key, stream);
    if (reading) interrupt();
    else readerId.then(read);
    reading = true;
  }
  return stream;
}

const server = http.createServer();
const sockets = new WebSocketServer({ server, clientTracking: false, perMessageDeflate: false });
sockets.on('connection', async (socket, request) => {
  const [path, query] = request.url.split('?');
  const key = `bench:${path.slice(1)}:0`;
  socket.on('error', () => {});
  if (query === 'history') {
    for (const [id, fields] of await commands.xrange(key, '-', '+')) {
      socket.send(message(id, fields), { binary: false });
    }
    return;
  }
  const stream = watch(key);
  stream.sockets.add(socket);
  socket.on('close', () => stream.sockets.delete(socket));
});
server.listen({ host: '127.0.0.1', port: Number(process.env.PORT), backlog: 4096 });
